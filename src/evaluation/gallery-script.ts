/** Leafs through the gallery: one subject and, if wanted, one prompt at a time. Without it the page shows everything, one below the other. */
export const galleryScript = `
(() => {
  const wall = document.querySelector('.wall');
  const subjects = [...wall.querySelectorAll('.subject')];
  const chooseSubject = document.querySelector('.bar .subject-name');
  const choosePrompt = document.querySelector('.bar .prompt');
  const view = document.querySelector('.bar .view');
  let [s, p] = [0, 0];
  const prompts = () => [...subjects[s].querySelectorAll('.prompt-pictures')];
  const within = (n, count) => (n + count) % count;
  const show = (subject, prompt) => {
    s = within(subject, subjects.length);
    const own = prompts();
    p = within(prompt, own.length);
    subjects.forEach((e, i) => e.classList.toggle('here', i === s));
    own.forEach((e, i) => e.classList.toggle('here', i === p));
    chooseSubject.value = String(s);
    choosePrompt.replaceChildren(...own.map((e, i) => new Option(e.dataset.prompt, String(i), false, i === p)));
    history.replaceState(null, '', '#' + (s + 1) + '.' + (p + 1));
    if (!wall.classList.contains('one')) own[p].scrollIntoView({ block: 'start' });
  };
  const step = (by) => {
    const next = p + by;
    const count = prompts().length;
    if (next >= 0 && next < count) return show(s, next);
    const other = within(s + by, subjects.length);
    show(other, by > 0 ? 0 : subjects[other].querySelectorAll('.prompt-pictures').length - 1);
  };
  const toggle = () => {
    const one = wall.classList.toggle('one');
    view.textContent = one ? 'Show all prompts' : 'Show one prompt';
    show(s, p);
  };
  chooseSubject.addEventListener('change', () => show(Number(chooseSubject.value), p));
  choosePrompt.addEventListener('change', () => show(s, Number(choosePrompt.value)));
  view.addEventListener('click', toggle);
  document.querySelector('.bar .back').addEventListener('click', () => step(-1));
  document.querySelector('.bar .on').addEventListener('click', () => step(1));
  document.addEventListener('keydown', (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === 'SELECT') return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    if (event.shiftKey) show(s + by, p);
    else step(by);
  });
  const [, subject, prompt] = /^#(\\d+)\\.(\\d+)$/.exec(location.hash) ?? [, 1, 1];
  document.body.classList.add('leafing');
  wall.classList.add('one');
  show(subject - 1, prompt - 1);
})();
`;
