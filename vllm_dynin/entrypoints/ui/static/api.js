// Requests to the server this page came from. No library, no other host.

const base = new URL('.', document.baseURI);
const key = document.getElementById('key');
key.value = sessionStorage.getItem('dynin-key') ?? '';
key.addEventListener('change', () => sessionStorage.setItem('dynin-key', key.value));

export const state = { model: '' };

function headers() {
  return key.value ? { Authorization: `Bearer ${key.value}` } : {};
}

// What the server says about an error: value, rule, way out.
async function failure(response) {
  const text = await response.text();
  try {
    const { error, detail } = JSON.parse(text);
    return new Error(error?.message ?? error ?? JSON.stringify(detail));
  } catch {
    return new Error(`${response.status} ${text.slice(0, 300)}`);
  }
}

async function send(path, options) {
  const response = await fetch(new URL(path, base), { ...options, headers: { ...headers(), ...options.headers } });
  if (!response.ok) throw await failure(response);
  return response;
}

export function get(path) {
  return send(path, { method: 'GET', headers: {} });
}

export function post(path, body) {
  return send(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ model: state.model, ...body }),
  });
}

export function postForm(path, fields) {
  const form = new FormData();
  form.set('model', state.model);
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined && value !== null) form.set(name, value);
  }
  return send(path, { method: 'POST', headers: {}, body: form });
}

// The data of each server-sent event of a response, parsed; ends at [DONE].
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith('data:')).map((line) => line.slice(5)).join('\n').trim();
      if (data === '[DONE]') return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message ?? String(event.error));
      yield event;
    }
  }
}

export function dataURL(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

export function describe(report, seconds) {
  const parts = [`${seconds.toFixed(1)} s`];
  if (report) {
    parts.push(`${report.steps} denoising steps`, `${report.forwards} forwards`);
    if (report.tokens_per_forward) parts.push(`${report.tokens_per_forward.toFixed(2)} tokens a forward`);
    parts.push(`waited ${report.queue_seconds.toFixed(2)} s`);
  }
  return parts.join(' · ');
}

export const number = (id) => (document.getElementById(id).value === '' ? undefined : Number(document.getElementById(id).value));

export function fail(error) {
  const place = document.getElementById('error');
  place.textContent = error ? error.message : '';
  place.hidden = !error;
}

// Run `work` when a form is sent, its button off meanwhile, and show what goes wrong.
export function onSubmit(form, work) {
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const button = form.querySelector('.go');
    button.disabled = true;
    fail(null);
    try {
      await work();
    } catch (error) {
      fail(error);
    } finally {
      button.disabled = false;
    }
  });
}
