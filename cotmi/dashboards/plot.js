// A plotly figure with its tools: drawn when it is visible, and drawn anew when the kernel sends another. What changes while
// it is hidden marks it as stale, and it is drawn when it is shown again.
const slug = text => (text || 'figure').replace(/<[^>]*>/g, '').toLowerCase().replace(/[^a-z0-9]+/g, '-')
  .replace(/^-|-$/g, '').slice(0, 60);
const save = (name, href) => {
  const link = Object.assign(document.createElement('a'), { download: name, href });
  document.body.append(link); link.click(); link.remove();
};
async function source(version) {
  for (let i = 0; i < 1200; i++) {
    if (globalThis.cotmiPlotly?.[version]) return globalThis.cotmiPlotly[version];
    await new Promise(done => setTimeout(done, 50));
  }
  throw new Error('plotly did not arrive from the kernel');
}
const isDark = colour => {
  const [r, g, b] = (colour.match(/[0-9.]+/g) || [255, 255, 255]).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b < 128;
};

export default { initialize, render({ model, el }) {
  el.classList.add('cotmi-plot-host');
  const [box, target, tools] = [0, 0, 0].map(() => document.createElement('div'));
  box.className = 'cotmi-plot'; tools.className = 'cotmi-tools'; box.append(target, tools); el.append(box);
  box.dataset.drawn = 0; box.setAttribute('role', 'figure');
  let ready = null, figure = null, again = false, busy = false, width = 0, gone = false, stale = true, drawn = 0;
  const mark = on => { stale = on; box.dataset.stale = Number(on); };
  const reserve = () => { // the height is known before the figure is drawn, so that nothing below it moves
    const text = model.get('_figure'), usual = model.get('_templates').light.layout.height;
    box.style.minHeight = text ? (JSON.parse(text).layout.height ?? usual) + 'px' : '';
  };
  const button = (text, title, action) => {
    const made = Object.assign(document.createElement('button'), { type: 'button', textContent: text, title });
    made.setAttribute('aria-label', title); made.onclick = action; tools.append(made);
  };
  const name = () => 'cotmi-' + slug(figure?.layout?.title?.text);
  const image = async format => save(`${name()}.${format}`, await ready.plotly.toImage(target,
    { format, scale: 2, width: target.offsetWidth, height: target.offsetHeight }));
  button('Reset', 'Reset the axes', () => ready && ready.plotly.relayout(target,
    Object.fromEntries(Object.keys(target._fullLayout).filter(k => /^[xy]axis[0-9]*$/.test(k)).map(k =>
      figure.layout[k]?.range ? [k + '.range', figure.layout[k].range.slice()] : [k + '.autorange',
        figure.layout[k]?.autorange ?? true]))));
  button('PNG', 'Save as PNG', () => image('png'));
  button('SVG', 'Save as SVG', () => image('svg'));
  button('HTML', 'Save as an interactive HTML page', () => {
    const shown = { data: figure.data, layout: { ...figure.layout, autosize: true } };
    const text = JSON.stringify(shown).replace(/</g, '\\u003c'); // no tag can end the script
    const open = '<script>', close = '</' + 'script>';
    const parts = ['<!doctype html><meta charset="utf-8"><title>cotmi</title><div id="figure"></div>', open, ready.text,
      close, open, `const f = ${text}; Plotly.newPlot('figure', f.data, f.layout, { responsive: true });`, close];
    const url = URL.createObjectURL(new Blob(parts, { type: 'text/html' }));
    save(name() + '.html', url); setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
  const paper = Object.assign(document.createElement('select'), { title: 'Save for a paper' });
  paper.setAttribute('aria-label', 'Save for a paper');
  paper.append(new Option('Paper', ''), ...['3.3 pdf', '3.3 svg', '6.9 pdf', '6.9 svg'].map(asked =>
    new Option(asked.replace(' ', ' in, ').toUpperCase().replace(' IN', ' in'), asked)));
  const told = Object.assign(document.createElement('span'), { className: 'told' });
  told.setAttribute('role', 'status');
  paper.onchange = () => {
    const [inches, kind] = paper.value.split(' ');
    paper.value = ''; told.textContent = 'Drawing…'; model.send({ event: 'paper', inches: Number(inches), kind });
  };
  const arrived = (message, buffers) => {
    if (message.event !== 'paper') return;
    told.textContent = message.fault || '';
    if (message.fault) return;
    const type = message.kind === 'pdf' ? 'application/pdf' : 'image/svg+xml';
    const url = URL.createObjectURL(new Blob([buffers[0]], { type }));
    save(`${name()}-${message.inches}in.${message.kind}`, url); setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  model.on('msg:custom', arrived);
  tools.append(paper, told);
  let lasso = false; // whether dragging catches points instead of zooming
  const catching = Object.assign(document.createElement('button'), { type: 'button', textContent: 'Lasso' });
  catching.title = 'Select points by drawing around them'; catching.setAttribute('aria-label', catching.title);
  catching.onclick = () => {
    lasso = !lasso; catching.setAttribute('aria-pressed', String(lasso));
    if (ready && target._fullLayout) ready.plotly.relayout(target, { dragmode: lasso ? 'lasso' : 'zoom' });
  };
  catching.setAttribute('aria-pressed', 'false'); tools.prepend(catching);
  const prepare = () => {
    const made = JSON.parse(model.get('_figure')), style = getComputedStyle(box), themes = model.get('_templates');
    const asked = model.get('theme'), back = style.backgroundColor;
    const template = structuredClone(themes[asked === 'auto' ? (isDark(back) ? 'dark' : 'light') : asked]);
    if (asked === 'auto') template.layout.paper_bgcolor = template.layout.plot_bgcolor = back;
    made.layout.template = template; made.layout.autosize = true; made.layout.width = undefined;
    catching.hidden = made.layout.meta !== 'selectable';
    if (lasso && !catching.hidden) made.layout.dragmode = 'lasso';
    made.layout.selectionrevision = ++drawn; // what was drawn around points is shown by the points themselves
    fit(made, box.offsetWidth);
    box.style.minHeight = (made.layout.height ?? template.layout.height) + 'px';
    box.setAttribute('aria-label', (made.layout.title?.text || 'figure').replace(/<br>/g, ' ').replace(/<[^>]*>/g, ''));
    return made;
  };
  const draw = async () => {
    mark(true);
    if (busy) { again = true; return; }
    busy = true;
    try {
      ready ??= await source(model.get('version'));
      do {
        again = false;
        if (gone || !model.get('_figure')) return;
        if (!box.offsetWidth) { // drawn when it is visible: who observes anew is told of any size, also of the former one
          visible.unobserve(box); visible.observe(box); return;
        }
        figure = prepare(); width = box.offsetWidth;
        const fresh = !target._fullLayout;
        await ready.plotly.react(target, figure.data, figure.layout,
          { displayModeBar: false, doubleClick: 'reset', responsive: false });
        if (fresh) {
          target.on('plotly_click',
            event => model.send({ event: 'click', custom: event.points[0].customdata ?? null }));
          target.on('plotly_selected', event => {
            if (event?.points) model.send({ event: 'select', customs: event.points.map(point => point.customdata ?? null) });
          });
          target.on('plotly_deselect', () => model.send({ event: 'select', customs: [] }));
          model.send({ event: 'drawn' });
        }
        box.dataset.drawn = Number(box.dataset.drawn) + 1;
        mark(again);
      } while (again && !gone);
    } catch (fault) {
      target.textContent = 'This figure cannot be drawn: ' + fault.message;
    } finally { busy = false; }
  };
  const visible = new ResizeObserver(() => {
    if (!box.offsetWidth) return;
    if (stale) draw();
    else if (box.offsetWidth !== width) draw(); // a narrower figure breaks its names and legend elsewhere
  });
  visible.observe(box);
  const page = new MutationObserver(() => model.get('theme') === 'auto' && draw());
  page.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-name', 'data-jp-theme-light'] });
  const later = () => { mark(true); requestAnimationFrame(draw); }; // the box takes its class first
  const changed = () => { reserve(); draw(); };
  model.on('change:_figure', changed); model.on('change:theme', later);
  changed();
  return () => {
    gone = true; visible.disconnect(); page.disconnect(); model.off('change:_figure', changed);
    model.off('change:theme', later); model.off('msg:custom', arrived);
    if (ready && target._fullLayout) ready.plotly.purge(target);
  };
} }
