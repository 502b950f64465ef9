// A page of a table. It asks the kernel for pages and orders; cells are set as text, never as HTML. Where many rows may be
// selected, Ctrl and a click adds or takes away one, Shift and a click or an arrow key selects up to there.
const make = (tag, props = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), props); made.append(...children); return made;
};
const LOOK = { figure: 'number', p: 'number' }; // of the kinds that have none of their own
const NUMBERS = { // how a number of a kind is written
  number: value => value.toLocaleString('en', { maximumFractionDigits: 4 }),
  figure: value => value.toLocaleString('en', { minimumFractionDigits: 2, maximumFractionDigits: 2 }),
  p: value => value < 0.0001 ? '<0.0001' : value.toLocaleString('en', { maximumSignificantDigits: 2 }),
};
function cell(kind, value) {
  const td = make('td', { className: 'is-' + (LOOK[kind] ?? kind) });
  if (value === null || value === undefined) { td.textContent = '–'; td.classList.add('none'); }
  else if (kind === 'mark') {
    const word = value ? 'yes' : 'no';
    td.append(make('span', { className: word, textContent: value ? '✓' : '✗', ariaLabel: word }));
  } else if (kind === 'share') {
    const fill = make('i'); fill.style.width = Math.round(100 * Math.max(0, Math.min(1, value))) + '%';
    td.append(make('span', { className: 'meter' }, fill), make('span', { textContent: value.toFixed(2) }));
  } else if (NUMBERS[kind] && typeof value === 'number') { td.textContent = NUMBERS[kind](value); }
  else {
    const text = String(value);
    const short = text.length > 300 ? text.slice(0, 300) + '…' : text;
    td.append(make('div', { textContent: short, title: text.slice(0, 600) }));
  }
  return td;
}
export default { initialize, render({ model, el }) {
  const box = make('div', { className: 'cotmi-table' }); el.append(box);
  const say = (event, value) => model.send({ event, value });
  const draw = () => {
    const view = model.get('_view'), columns = model.get('columns'), many = model.get('many');
    const held = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const least = columns.reduce((sum, column) => sum + (parseFloat(column.width) || 110), 0); // narrower, it scrolls
    const head = make('tr', {}, ...columns.map(column => {
      const on = view.sort === column.key;
      const th = make('th', { className: 'is-' + (LOOK[column.kind] ?? column.kind), scope: 'col' });
      th.setAttribute('aria-sort', on ? (view.descending ? 'descending' : 'ascending') : 'none');
      if (column.width) th.style.width = column.width;
      const arrow = on ? (view.descending ? ' ▾' : ' ▴') : '';
      const sort = make('button', { type: 'button', textContent: column.label + arrow,
        title: 'Sort by ' + column.label, onclick: () => say('sort', column.key) });
      sort.dataset.key = 'sort-' + column.key; th.append(sort); return th;
    }));
    const rows = view.rows.map((row, i) => {
      const reached = row.id === view.selected || (i === 0 && !view.rows.some(r => r.id === view.selected));
      const tr = make('tr', { tabIndex: reached ? 0 : -1 });
      tr.dataset.id = row.id; tr.dataset.key = 'row-' + row.id;
      tr.setAttribute('aria-selected', String(row.id === view.selected || row.marked));
      tr.className = row.marked ? 'marked' : '';
      if (row.id === view.selected) tr.setAttribute('aria-current', 'true');
      tr.append(...columns.map((column, k) => cell(column.kind, row.cells[k])));
      tr.onclick = event => say(many && event.shiftKey ? 'extend' : many && (event.ctrlKey || event.metaKey) ? 'toggle'
        : 'select', row.id);
      tr.onmousedown = event => { if (many && event.shiftKey) event.preventDefault(); }; // no text is to be marked
      tr.onkeydown = event => {
        const next = { ArrowDown: tr.nextElementSibling, ArrowUp: tr.previousElementSibling }[event.key];
        if (next) { next.focus(); say(many && event.shiftKey ? 'extend' : 'select', next.dataset.id); }
        else if (many && event.key === ' ' && event.ctrlKey) say('toggle', row.id);
        else if (event.key === 'Enter' || event.key === ' ') say('select', row.id);
        else if (event.key === 'PageDown') say('page', view.page + 1);
        else if (event.key === 'PageUp') say('page', view.page - 1);
        else return;
        event.preventDefault(); event.stopPropagation();
      };
      return tr;
    });
    const first = view.total ? view.page * view.size + 1 : 0, last = Math.min(view.total, (view.page + 1) * view.size);
    const turn = (text, title, to, off) => {
      const made = make('button', { type: 'button', textContent: text, title, disabled: off, ariaLabel: title,
        onclick: () => say('page', to) });
      made.dataset.key = title; return made;
    };
    const pages = Math.max(1, Math.ceil(view.total / view.size));
    const count = make('span', { className: 'count', role: 'status' });
    const spell = n => n.toLocaleString('en');
    const all = view.all > view.total ? ` (${spell(view.all)} without filters)` : '';
    count.textContent = view.total ? `${spell(first)}–${spell(last)} of ${spell(view.total)}${all}` : view.reason;
    const marks = many ? [make('span', { className: 'marks', role: 'status', textContent: view.marked
      ? `${spell(view.marked)} selected` : 'Ctrl or Shift and a click selects rows' })] : [];
    const foot = make('div', { className: 'foot' }, count, ...marks, make('span', { className: 'turn' },
      turn('«', 'First page', 0, view.page === 0), turn('‹', 'Previous page', view.page - 1, view.page === 0),
      make('span', { textContent: `page ${(view.page + 1).toLocaleString('en')} of ${pages.toLocaleString('en')}` }),
      turn('›', 'Next page', view.page + 1, view.page >= pages - 1),
      turn('»', 'Last page', pages - 1, view.page >= pages - 1)));
    const table = make('table', {}, make('thead', {}, head), make('tbody', {}, ...rows));
    table.style.minWidth = least + 'px';
    table.setAttribute('aria-label', model.get('label'));
    box.replaceChildren(make('div', { className: 'scroll' }, table), foot);
    box.dataset.drawn = Number(box.dataset.drawn || 0) + 1;
    if (held) ([...box.querySelectorAll('[data-key]')].find(e => e.dataset.key === held && !e.disabled)
      ?? (held.startsWith('row-') ? box.querySelector('tbody tr') : null))?.focus({ preventScroll: true });
  };
  draw(); model.on('change:_view', draw); model.on('change:columns', draw);
  return () => { model.off('change:_view', draw); model.off('change:columns', draw); };
} }
