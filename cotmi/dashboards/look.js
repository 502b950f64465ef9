// Shows nothing itself while all is well: carries the style sheet, tells screen readers what ipywidgets leaves out (what a
// slider is for, which button of a row is pressed), and lets the controls of a page that was opened again wait until the
// kernel answers, so that no click is lost on the way.
const name = root => {
  for (const widget of root.querySelectorAll('.widget-slider')) {
    const label = widget.querySelector('.widget-label')?.textContent || 'Slider';
    const handles = [...widget.querySelectorAll('.noUi-handle')];
    handles.forEach((handle, i) => handle.setAttribute('aria-label', handles.length < 2 ? label
      : `${label}, ${i ? 'upper' : 'lower'} end`));
  }
  for (const button of root.querySelectorAll('.widget-toggle-button'))
    button.setAttribute('aria-pressed', String(button.classList.contains('mod-active')));
  for (const group of root.querySelectorAll('.widget-toggle-buttons')) group.setAttribute('role', 'group');
};
const CONTROLS = ['button', 'input', 'select', 'textarea', '.noUi-handle', '.cotmi-tabs', '.cotmi-table tbody']
  .map(each => `${each}:not(.cotmi-plot *)`).join(); // a figure saves and zooms without a kernel
const PATIENCE = 15_000; // after which the bar says what to do
export default { initialize, render({ model, el }) {
  el.style.display = 'none'; el.classList.add('cotmi-waiting'); el.setAttribute('role', 'status');
  let seen = null, asked = 0, root = null, waiting = false, reached = false, tick = 0;
  const began = performance.now(), page = `${Date.now()}-${Math.random()}`; // the kernel sends each page once what it missed
  const connected = () => model.get('layout')?.comm_live !== false; // a model without a way to the kernel says so
  const hold = on => {
    for (const control of root.querySelectorAll(CONTROLS)) if (control.inert !== on) control.inert = on;
  };
  const show = () => {
    const needed = model.get('waits') && model.get('_met') && !(reached && connected());
    if (needed) el.textContent = performance.now() - began < PATIENCE ? 'Reconnecting to the kernel: controls wait for it.'
      : 'The kernel does not answer. It may be busy; if it is gone, run the cell again.';
    if (needed || waiting) hold(needed);
    waiting = needed; el.style.display = needed ? 'block' : 'none';
  };
  const hello = () => { if (!reached && connected()) model.send({ event: 'hello', page }); show(); };
  const answered = message => { if (message.event === 'hello') { reached = true; el.dataset.greeted = 1; show(); } };
  const begin = () => {
    root = el.closest('.cotmi');
    if (!root) { asked = requestAnimationFrame(begin); return; } // not on the page yet
    const later = () => {
      cancelAnimationFrame(asked); asked = requestAnimationFrame(() => { name(root); if (waiting) hold(true); });
    };
    seen = new MutationObserver(later);
    seen.observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: ['class'] });
    later(); hello(); tick = setInterval(hello, 1000);
  };
  model.on('msg:custom', answered);
  begin();
  return () => { cancelAnimationFrame(asked); clearInterval(tick); seen?.disconnect(); model.off('msg:custom', answered); };
} }
