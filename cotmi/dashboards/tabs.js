// A row of tabs: a click, the arrow keys, Home and End choose one.
export default { initialize, render({ model, el }) {
  const list = document.createElement('div');
  list.className = 'cotmi-tabs'; list.setAttribute('role', 'tablist');
  list.setAttribute('aria-label', model.get('label'));
  el.append(list);
  const choose = (i, focus) => {
    const n = model.get('names').length; i = (i + n) % n;
    if (i !== model.get('index')) { model.set('index', i); model.save_changes(); }
    if (focus) list.children[i].focus();
  };
  const draw = () => {
    const index = model.get('index');
    list.replaceChildren(...model.get('names').map((name, i) => {
      const tab = document.createElement('button');
      tab.type = 'button'; tab.textContent = name; tab.setAttribute('role', 'tab');
      tab.setAttribute('aria-selected', String(i === index)); tab.tabIndex = i === index ? 0 : -1;
      tab.onclick = () => choose(i, true);
      return tab;
    }));
  };
  const mark = () => [...list.children].forEach((tab, i) => {
    const on = i === model.get('index'); tab.setAttribute('aria-selected', String(on)); tab.tabIndex = on ? 0 : -1;
  });
  list.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) choose(model.get('index') + step, true);
    else if (event.key === 'Home') choose(0, true);
    else if (event.key === 'End') choose(-1, true);
    else return;
    event.preventDefault(); event.stopPropagation();
  };
  draw(); model.on('change:names', draw); model.on('change:index', mark);
  return () => { model.off('change:names', draw); model.off('change:index', mark); };
} }
