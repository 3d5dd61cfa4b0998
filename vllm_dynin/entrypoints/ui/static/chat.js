// Chat with media in, text or speech out. Text appears block by block as it is decided; the slots
// that are still masked are shown as dots.

import { dataURL, describe, events, fail, number, onSubmit, post } from './api.js';

const log = document.getElementById('chat-log');
const text = document.getElementById('chat-text');
const attach = document.getElementById('chat-attach');
const preview = document.getElementById('chat-files');

let messages = [];
let files = [];

function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function show(file, url) {
  const kind = file.type.split('/')[0];
  if (kind === 'image') return element('img', { src: url, alt: file.name });
  return element(kind === 'video' ? 'video' : 'audio', { src: url, controls: true });
}

function part(file, url) {
  const kind = file.type.split('/')[0];
  if (kind === 'image') return { type: 'image_url', image_url: { url } };
  if (kind === 'video') return { type: 'video_url', video_url: { url } };
  if (kind === 'audio') return { type: 'audio_url', audio_url: { url } };
  throw new Error(`${file.name} is ${file.type || 'of an unknown type'}; attach an image, a video or a recording`);
}

attach.addEventListener('change', async () => {
  fail(null);
  try {
    for (const file of attach.files) {
      const url = await dataURL(file);
      files.push({ part: part(file, url), file, url });
      preview.append(show(file, url));
    }
  } catch (error) {
    fail(error);
  }
  attach.value = '';
});

function bubble(role) {
  const item = element('li', { className: role });
  log.append(item);
  return item;
}

function options() {
  const xargs = { dynin_report: true };
  const steps = number('chat-steps');
  if (steps !== undefined) xargs.dynin_steps = steps;
  return { max_tokens: number('chat-tokens'), temperature: 0, vllm_xargs: xargs };
}

async function answerInText(item) {
  const length = number('chat-tokens') ?? 64;
  const words = element('span');
  const masks = element('span', { className: 'masks', textContent: '·'.repeat(length) });
  item.append(words, masks);
  let left = length;
  let report;
  const response = await post('v1/chat/completions', {
    ...options(), messages, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true },
  });
  for await (const event of events(response)) {
    report = event.kv_transfer_params?.dynin_report ?? report;
    words.textContent += event.choices[0]?.delta?.content ?? '';
    left = length - (event.usage?.completion_tokens ?? length - left);
    masks.textContent = '·'.repeat(Math.max(0, left));
  }
  masks.remove();
  return { content: words.textContent, report };
}

async function answerInSpeech(item) {
  const response = await post('v1/chat/completions', { ...options(), messages, modalities: ['audio'] });
  const body = await response.json();
  const { message } = body.choices[0];
  const audio = message.audio;
  if (!audio?.data) throw new Error('the answer holds no speech: nothing was said');
  item.append(element('audio', { src: `data:audio/wav;base64,${audio.data}`, controls: true }));
  return { content: audio.transcript ?? '', report: body.dynin_report ?? body.kv_transfer_params?.dynin_report };
}

onSubmit(document.getElementById('chat-form'), async () => {
  const words = text.value.trim();
  if (!words && !files.length) throw new Error('write something, or attach a file');
  const sent = files;
  messages.push({ role: 'user', content: [...sent.map((one) => one.part), ...(words ? [{ type: 'text', text: words }] : [])] });
  const question = bubble('user');
  sent.forEach((one) => question.append(show(one.file, one.url)));
  question.append(words);
  const answer = bubble('assistant');
  const started = performance.now();
  try {
    const isSpoken = document.getElementById('chat-speech').checked;
    const { content, report } = await (isSpoken ? answerInSpeech(answer) : answerInText(answer));
    messages.push({ role: 'assistant', content });
    answer.append(element('p', { className: 'report', textContent: describe(report, (performance.now() - started) / 1000) }));
    text.value = '';
    files = [];
    preview.replaceChildren();
  } catch (error) {
    messages.pop();
    question.remove();
    answer.remove();
    throw error;
  }
});

document.getElementById('chat-clear').addEventListener('click', () => {
  messages = [];
  files = [];
  log.replaceChildren();
  preview.replaceChildren();
});
