// A line that folds away what is under it, and stays folded when the page is opened again.
export default { initialize, render({ model, el }) {
  const fold = document.createElement('details'), line = document.createElement('summary');
  const body = document.createElement('div');
  fold.className = 'cotmi-fold'; fold.append(line, body); el.append(fold);
  const place = () => 'cotmi-folded-' + model.get('key');
  const remembered = () => { try { return localStorage.getItem(place()); } catch { return null; } }; // may be forbidden
  fold.open = remembered() !== '1';
  fold.ontoggle = () => { try { localStorage.setItem(place(), fold.open ? '0' : '1'); } catch { /* not remembered */ } };
  const draw = () => {
    line.innerHTML = `<span class="shut">${model.get('summary')}</span><span class="open">Fold the head away</span>`;
    body.innerHTML = model.get('value');
  };
  draw(); model.on('change:value', draw); model.on('change:summary', draw);
  return () => { model.off('change:value', draw); model.off('change:summary', draw); };
} }
