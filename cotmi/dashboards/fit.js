// How a figure uses a narrow place: shortened names, a title in lines, a legend with room of its own. Dashboards and the
// documentation share it.
const plain = text => Object.assign(document.createElement('textarea'), { innerHTML: text }).value;
const shorten = (text, most) => { // the middle goes, since names of a group differ at their ends
  const whole = plain(String(text));
  if (whole.length <= most || whole.includes('<br>')) return text;
  const tail = Math.floor((most - 1) / 2), kept = whole.slice(0, most - 1 - tail) + '…' + whole.slice(-tail);
  return kept.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/\$/g, '&#36;');
};
const LETTER = 7, TITLE_LINE = 19, LEGEND_LINE = 29; // pixels
const inLines = (parts, wide, room) => { // parts one after the other, as lines that fit into the room
  const lines = [[]];
  let used = 0;
  for (const part of parts) {
    if (used && used + wide(part) > room) { lines.push([]); used = 0; }
    lines.at(-1).push(part); used += wide(part);
  }
  return lines;
};
// Every label of an axis that has room for few would stand on the next one: each k-th is left.
const thin = (axis, room) => {
  const each = Math.ceil(14 * axis.ticktext.length / room);
  for (const key of ['ticktext', 'tickvals']) axis[key] = [...axis[key]].filter((_, i) => i % each === 0);
};
// What a narrow figure needs: names beside an axis leave most of it to the figure, title and legend have their lines.
const fit = (figure, width) => {
  const layout = figure.layout, usual = { height: 450, title: {}, ...layout.template?.layout };
  const margin = { t: 60, b: 50, l: 60, r: 30, ...usual.margin, ...layout.margin };
  const height = layout.height ?? usual.height, most = Math.max(8, Math.floor(0.4 * width / LETTER));
  for (const key of Object.keys(layout).filter(key => /^[xy]axis[0-9]*$/.test(key) && layout[key].ticktext)) {
    const axis = layout[key], room = key[0] === 'x' ? 0.7 * width : height - margin.t - margin.b;
    thin(axis, room);
    axis.ticktext = axis.ticktext.map(text => shorten(text, key[0] === 'x' ? 24 : most));
    const longest = Math.max(...axis.ticktext.map(text => plain(text).length));
    if (key[0] === 'x' && longest * LETTER > room / axis.ticktext.length) axis.tickangle = -90;
  }
  const free = width - 28 - (width > 520 ? 180 : 0); // the tools stand at the right, where there is room
  const title = inLines((layout.title?.text || '').split(' '), word => 8.6 * (plain(word).length + 1), free);
  if (title.length > 1) {
    layout.title.text = title.map(line => line.join(' ')).join('<br>');
    layout.title.pad = { ...usual.title.pad, t: (usual.title.pad?.t ?? 0) + TITLE_LINE / 2 * (title.length - 1) };
  }
  const told = figure.data.filter(trace => trace.showlegend !== false && trace.name);
  const shown = layout.showlegend !== false && (told.length > 1 || layout.showlegend);
  const legend = inLines(shown ? told : [], trace => 42 + LETTER * plain(trace.name).length,
    width - margin.l - margin.r);
  const more = TITLE_LINE * (title.length - 1) + LEGEND_LINE * (legend.length - 1);
  layout.margin = { ...margin, t: margin.t + more };
  layout.height = height + more;
};
