// Shows nothing itself: carries the style sheet, and tells screen readers what ipywidgets leaves out: what a slider is for,
// and which button of a row is pressed.
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
export default { render({ el }) {
  el.style.display = 'none';
  let seen = null, asked = 0;
  const begin = () => {
    const root = el.closest('.cotmi');
    if (!root) { asked = requestAnimationFrame(begin); return; } // not on the page yet
    const later = () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(() => name(root)); };
    seen = new MutationObserver(later);
    seen.observe(root, { childList: true, subtree: true, attributes: true, attributeFilter: ['class'] });
    later();
  };
  begin();
  return () => { cancelAnimationFrame(asked); seen?.disconnect(); };
} }
