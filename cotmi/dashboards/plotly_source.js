// Unpacks plotly.js once for a page; every plot of the page waits for it.
async function unpack(model) {
  const packed = model.get('_packed');
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const text = await new Response(stream).text();
  const before = globalThis.Plotly; // another extension may keep its own there
  const head = 'const module = { exports: {} }, exports = module.exports, define = undefined;\n';
  const parts = [head, text, '\nexport default module.exports;'];
  const url = URL.createObjectURL(new Blob(parts, { type: 'text/javascript' }));
  const plotly = (await import(url)).default;
  URL.revokeObjectURL(url);
  if (before) globalThis.Plotly = before;
  return { plotly, text };
}
export default { async initialize({ model }) {
  const all = (globalThis.cotmiPlotly ??= {}), version = model.get('version');
  all[version] ??= unpack(model);
} }
