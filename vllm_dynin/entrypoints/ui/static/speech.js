// Text to speech, and recordings to text.

import { fail, get, onSubmit, post, postForm } from './api.js';

const byId = (id) => document.getElementById(id);

function since(started) {
  return `${((performance.now() - started) / 1000).toFixed(1)} s`;
}

byId('speak-voice').addEventListener('focus', async () => {
  const { voices, styles } = await (await get('v1/audio/voices')).json();
  byId('voices').replaceChildren(...[...voices, ...styles].map((name) => new Option(name, name)));
}, { once: true });

onSubmit(byId('speak-form'), async () => {
  const started = performance.now();
  byId('speak-report').textContent = 'speaking …';
  const response = await post('v1/audio/speech', {
    input: byId('speak-text').value,
    voice: byId('speak-voice').value || undefined,
    response_format: 'wav',
  });
  const player = byId('speak-result');
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(await response.blob());
  player.hidden = false;
  byId('speak-report').textContent = since(started);
});

async function transcribe(file) {
  fail(null);
  const started = performance.now();
  const player = byId('listen-audio');
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  player.hidden = false;
  byId('listen-result').textContent = '';
  byId('listen-report').textContent = 'listening …';
  try {
    const response = await postForm('v1/audio/transcriptions', { file, response_format: 'json' });
    byId('listen-result').textContent = (await response.json()).text;
    byId('listen-report').textContent = since(started);
  } catch (error) {
    byId('listen-report').textContent = '';
    fail(error);
  }
}

byId('listen-file').addEventListener('change', (event) => {
  const [file] = event.target.files;
  if (file) transcribe(file);
  event.target.value = '';
});

const button = byId('listen-record');
let recorder = null;

button.addEventListener('click', async () => {
  if (recorder) {
    recorder.stop();
    return;
  }
  fail(null);
  try {
    // Browsers give the microphone to pages over https and on localhost only.
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const pieces = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      const type = recorder.mimeType;
      recorder = null;
      button.textContent = 'Record';
      transcribe(new File(pieces, 'recording.webm', { type }));
    };
    recorder.start();
    button.textContent = 'Stop';
  } catch (error) {
    recorder = null;
    fail(new Error(`no microphone: ${error.message}; choose a file instead`));
  }
});
