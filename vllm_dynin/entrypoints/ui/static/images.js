// New images and edits, shown while they fill in.

import { describe, events, fail, number, onSubmit, post, postForm } from './api.js';

const PARTIALS = 3; // unfinished images in a stream: the most the images API has

// Show the images of a stream as they come: the last in `result`, all of them in `film`.
async function play(response, result, film, report) {
  const started = performance.now();
  film.replaceChildren();
  for await (const event of events(response)) {
    const url = `data:image/${event.output_format};base64,${event.b64_json}`;
    result.src = url;
    result.hidden = false;
    const frame = new Image();
    frame.src = url;
    frame.alt = event.type.endsWith('completed') ? 'finished' : `unfinished, ${event.partial_image_index + 1}`;
    film.append(frame);
    if (event.type.endsWith('completed')) report.textContent = describe(event.dynin_report, (performance.now() - started) / 1000);
  }
}

const byId = (id) => document.getElementById(id);

onSubmit(byId('image-form'), async () => {
  byId('image-report').textContent = 'every patch is masked …';
  const response = await post('v1/images/generations', {
    prompt: byId('image-prompt').value,
    size: byId('image-size').value || undefined,
    num_inference_steps: number('image-steps'),
    guidance_scale: number('image-guidance'),
    seed: number('image-seed'),
    stream: true,
    partial_images: PARTIALS,
    vllm_xargs: { dynin_report: true },
  });
  await play(response, byId('image-result'), byId('image-film'), byId('image-report'));
});

// The canvas shows the source; the mask is drawn on a second one of the same size.
const canvas = byId('edit-canvas');
const pen = canvas.getContext('2d');
const mask = document.createElement('canvas');
let source = null;
let file = null;
let hasMask = false;
let last = null;

function paint() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!source) return;
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 0.55;
  pen.drawImage(mask, 0, 0);
  pen.globalAlpha = 1;
}

function clearMask() {
  mask.width = canvas.width;
  mask.height = canvas.height;
  hasMask = false;
  paint();
}

byId('edit-file').addEventListener('change', async (event) => {
  fail(null);
  [file] = event.target.files;
  if (!file) return;
  try {
    source = await createImageBitmap(file);
  } catch {
    fail(new Error(`${file.name} is not an image this browser can open`));
    return;
  }
  const scale = 384 / Math.max(source.width, source.height);
  canvas.width = Math.round(source.width * scale);
  canvas.height = Math.round(source.height * scale);
  clearMask();
});

byId('edit-clear').addEventListener('click', clearMask);

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
}

function draw(event) {
  const [x, y] = place(event);
  const brush = mask.getContext('2d');
  brush.strokeStyle = '#e0223a';
  brush.lineCap = 'round';
  brush.lineWidth = Number(byId('edit-brush').value);
  brush.beginPath();
  brush.moveTo(...(last ?? [x, y]));
  brush.lineTo(x, y);
  brush.stroke();
  last = [x, y];
  hasMask = true;
  paint();
}

canvas.addEventListener('pointerdown', (event) => {
  if (!source) return;
  canvas.setPointerCapture(event.pointerId);
  draw(event);
});
canvas.addEventListener('pointermove', (event) => last && draw(event));
canvas.addEventListener('pointerup', () => { last = null; });
canvas.addEventListener('pointercancel', () => { last = null; });

// The mask as the images API wants it: transparent where to paint, as large as the source.
function maskFile() {
  const whole = document.createElement('canvas');
  whole.width = source.width;
  whole.height = source.height;
  const context = whole.getContext('2d');
  context.fillRect(0, 0, whole.width, whole.height);
  context.globalCompositeOperation = 'destination-out';
  context.drawImage(mask, 0, 0, whole.width, whole.height);
  return new Promise((resolve) => { whole.toBlob(resolve, 'image/png'); });
}

onSubmit(byId('edit-form'), async () => {
  if (!file) throw new Error('choose an image first');
  byId('edit-report').textContent = 'every patch to be painted is masked …';
  const response = await postForm('v1/images/edits', {
    image: file,
    mask: hasMask ? new File([await maskFile()], 'mask.png', { type: 'image/png' }) : undefined,
    prompt: byId('edit-prompt').value,
    num_inference_steps: number('edit-steps'),
    seed: number('edit-seed'),
    stream: 'true',
    partial_images: String(PARTIALS),
    vllm_xargs: JSON.stringify({ dynin_report: true }),
  });
  await play(response, byId('edit-result'), byId('edit-film'), byId('edit-report'));
});
