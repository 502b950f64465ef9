// A figure in the column of a page that no kernel serves (a report, the documentation), drawn anew when the column gets
// another width. fit.js stands before it.
globalThis.cotmiFigure = (place, figure) => {
  const box = document.getElementById(place);
  let width = 0;
  new ResizeObserver(() => {
    if (!box.offsetWidth || box.offsetWidth === width) return;
    width = box.offsetWidth;
    const made = structuredClone(figure), panels = Object.keys(made.layout).filter(key => /^xaxis[0-9]*$/.test(key))
      .filter(key => (made.layout[key].domain?.[1] ?? 1) < 0.9).length; // panels side by side need their room, and scroll
    made.layout.width = Math.max(width, panels ? 320 * (panels + 1) : 0);
    fit(made, made.layout.width);
    Plotly.react(box, made.data, made.layout, {
      displaylogo: false, // the buttons left have their room beside the title
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'zoomIn2d', 'zoomOut2d', 'autoScale2d'] });
  }).observe(box);
};
