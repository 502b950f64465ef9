// anywidget gives the script of a model two seconds to load, by the clock. A busy page takes longer, and then whatever the
// kernel sends to that model is dropped, for good (`ready` in anywidget's Runtime): a figure never comes, or never changes.
// Such a model takes messages as one of ipywidgets does, and asks the kernel for what it missed.
const listen = async ({ model }) => {
  let whole = null; // the model of which anywidget shows a part; what happens to it is told with it
  const show = it => { whole = it; };
  model.on('change:_shown', show); model.set('_shown', true); model.off('change:_shown', show);
  if (!whole?.comm || !whole._handle_comm_msg) return; // no kernel, or a front end with ways of its own
  delete whole.attributes._shown; delete whole._buffered_state_diff?._shown;
  try { await whole._handle_comm_msg({ content: { data: {} } }); return; } catch { /* it does not listen */ }
  let usual = whole;
  while (!Object.hasOwn(usual, '_handle_comm_msg')) usual = Object.getPrototypeOf(usual);
  usual = Object.getPrototypeOf(usual);
  whole.comm.on_msg(message => usual._handle_comm_msg.call(whole, message));
  whole.comm.send({ method: 'request_state' }, {});
};
const initialize = anywidget => { listen(anywidget); }; // not waited for: it waits for what follows
