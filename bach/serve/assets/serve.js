// The page of the service: a photo that is dropped, slides and their jobs. No framework.
'use strict';

const byId = (id) => document.getElementById(id);
const FILES = {
  'heatmap.png': 'picture',
  'class_map.png': 'class map',
  'qupath.geojson.gz': 'QuPath',
  'classes.tif': 'TIFF',
  'probs.ome.tif': 'OME-TIFF',
  'probs.npy': 'NumPy',
  report: 'report',
};

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error('The service does not answer. It may have ended, or be restarting.');
  }
  if (answer.status === 204) return null;
  const value = await answer.json().catch(() => ({}));
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error(value.message || `The service says ${answer.status}.`);
  return value;
}

function say(place, text, bad) {
  place.textContent = text;
  place.classList.toggle('bad', Boolean(bad));
}

// A photo

let latest = 0; // of two photos, the answer to the first may come last

async function predict(file) {
  const mine = ++latest;
  byId('photo-result').hidden = false;
  byId('photo-name').textContent = file.name;
  byId('probabilities').hidden = byId('photo-note').hidden = true;
  say(byId('photo-status'), 'The network looks at it …');
  const preview = byId('preview');
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = true;
  preview.onload = () => { preview.hidden = false; }; // a TIFF is shown by few browsers
  preview.src = URL.createObjectURL(file);
  const form = new FormData();
  form.append('image', file);
  if (byId('photo-mpp').value.trim()) form.append('mpp', byId('photo-mpp').value.trim().replace(',', '.'));
  try {
    const answer = await ask('/model/predict', { method: 'POST', body: form });
    if (mine === latest) show(answer.predictions);
  } catch (error) {
    if (mine === latest) say(byId('photo-status'), error.message, true);
  }
}

function show(predictions) {
  const [best] = predictions;
  for (const { label, probability } of predictions) {
    const row = document.querySelector(`#probabilities tr[data-class="${label}"]`);
    row.classList.toggle('best', label === best.label);
    row.children[1].textContent = `${(100 * probability).toFixed(1)}%`;
    row.querySelector('span').style.width = `${100 * probability}%`;
  }
  say(byId('photo-status'), `Most likely, to this network: ${best.label}.`);
  byId('probabilities').hidden = byId('photo-note').hidden = false;
}

const drop = byId('drop');
for (const kind of ['dragenter', 'dragover']) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add('over'); });
}
for (const kind of ['dragleave', 'drop']) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove('over'); });
}
drop.addEventListener('drop', (event) => { if (event.dataTransfer.files.length) predict(event.dataTransfer.files[0]); });
byId('image').addEventListener('change', (event) => { if (event.target.files.length) predict(event.target.files[0]); });

// Slides

byId('slide-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const form = new FormData();
  const path = byId('slide') ? byId('slide').value : '';
  const [file] = byId('upload').files;
  const status = byId('slide-status');
  if (!path && !file) { say(status, 'Choose a slide first.', true); return; }
  if (byId('slide-mpp').value.trim()) form.append('mpp', byId('slide-mpp').value.trim().replace(',', '.'));
  if (file) form.append('slide', file); else form.append('path', path);
  say(status, file ? 'Uploading …' : '');
  try {
    await ask('/slides', { method: 'POST', body: form });
    byId('slide-form').reset();
    say(status, 'It waits for its turn.');
  } catch (error) {
    say(status, error.message, true);
  }
  refresh();
});

function link(address, text) {
  const made = document.createElement('a');
  made.href = address;
  made.textContent = text;
  return made;
}

function button(text, name, does) {
  const made = document.createElement('button');
  made.type = 'button';
  made.textContent = text;
  made.setAttribute('aria-label', `${text}: ${name}`);
  made.addEventListener('click', does);
  return made;
}

function view(address) {
  const frame = byId('viewer-frame');
  frame.hidden = false;
  frame.src = address;
  frame.scrollIntoView();
}

async function remove(job) {
  const ended = !['queued', 'running'].includes(job.state);
  if (ended && !confirm(`Remove ${job.slide} and all its results?`)) return;
  try {
    await ask(`/jobs/${job.id}`, { method: 'DELETE' });
  } catch (error) {
    say(byId('slide-status'), error.message, true);
  }
  refresh();
}

function rowOf(job) {
  const row = document.createElement('tr');
  row.dataset.id = job.id;
  row.dataset.state = job.state;
  const name = document.createElement('th');
  name.scope = 'row';
  name.textContent = job.slide;
  const [state, files, does] = [0, 1, 2].map(() => document.createElement('td'));
  const batches = job.batches ? `, ${job.batches} batches` : '';
  say(state, job.message || job.state + batches, job.state === 'failed');
  for (const [file, text] of Object.entries(FILES)) {
    if (job.results[file]) files.append(link(job.results[file], text), ' ');
  }
  if (job.results.viewer) does.append(button('View', job.slide, () => view(job.results.viewer)), ' ');
  const active = ['queued', 'running'].includes(job.state);
  does.append(button(active ? 'Cancel' : 'Remove', job.slide, () => remove(job)));
  row.append(name, state, files, does);
  return row;
}

let before = '';

async function refresh() {
  try {
    const jobs = await ask('/jobs');
    const now = JSON.stringify(jobs);
    if (now !== before) { // a button that has the focus keeps it while nothing changes
      before = now;
      byId('jobs').hidden = jobs.length === 0;
      byId('jobs').tBodies[0].replaceChildren(...jobs.map(rowOf));
    }
  } catch (error) {
    say(byId('slide-status'), error.message, true);
  }
}

refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 2000);
