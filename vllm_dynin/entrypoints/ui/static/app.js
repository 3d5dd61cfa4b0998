// Tabs, and the name of the model that is served.

import { fail, get, state } from './api.js';
import './chat.js';
import './images.js';
import './speech.js';

const tabs = [...document.querySelectorAll('[role=tab]')];

function show(tab) {
  for (const other of tabs) {
    const isShown = other === tab;
    other.setAttribute('aria-selected', String(isShown));
    other.tabIndex = isShown ? 0 : -1;
    document.getElementById(other.getAttribute('aria-controls')).hidden = !isShown;
  }
  fail(null);
}

tabs.forEach((tab, index) => {
  tab.addEventListener('click', () => show(tab));
  tab.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(index + step + tabs.length) % tabs.length];
    next.focus();
    show(next);
  });
});

async function connect() {
  const place = document.getElementById('model');
  try {
    const { data } = await (await get('v1/models')).json();
    state.model = data[0].id;
    place.textContent = `serves ${state.model}`;
    document.body.dataset.ready = 'true';
  } catch (error) {
    place.textContent = 'not connected';
    fail(error);
  }
}

document.getElementById('key').addEventListener('change', connect);
show(tabs[0]);
connect();
