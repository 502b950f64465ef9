// A figure in the column of a page, drawn anew when the column gets another width. The build puts fit.js before it.
globalThis.cotmiFigure = (place, figure) => {
  const box = document.getElementById(place);
  let width = 0;
  new ResizeObserver(() => {
    if (!box.offsetWidth || box.offsetWidth === width) return;
    width = box.offsetWidth;
    const made = structuredClone(figure);
    Object.assign(made.layout, { autosize: true, width: undefined });
    fit(made, width);
    Plotly.react(box, made.data, made.layout, { displaylogo: false });
  }).observe(box);
};
