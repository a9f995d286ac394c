// The page of training runs. `data` is what `make_report` collects.
const {runs} = data;
const hidden = new Set();  // names of runs, after "run:", and kinds of lines
const KINDS = {
  "train": {text: "training", width: 1.3}, "eval/raw": {text: "evaluation, raw weights", dash: "2 4", width: 1.6, open: true},
  "eval/ema": {text: "evaluation, EMA weights", width: 2.2},
};
const {metric} = data;  // of the first chart
const CHARTS = {[metric.key]: metric.title, loss: "loss", learning_rate: "learning rate", images_per_second: "images/s"};
const isShare = key => key === metric.key && metric.is_share;
const isLogged = run => Object.values(run.curves).some(curve => curve.step.length);
const hours = runs.flatMap(run => Object.values(run.curves)).flatMap(curve => curve.hours);
const inMinutes = Math.max(0, ...hours) < 2;
const AXES = {
  ...(data.epochs_are_known && {epoch: "epoch"}), step: "step",
  hours: inMinutes ? "training time (minutes)" : "training time (hours)",
};
const place = (value, x) => x === "hours" && value != null && inMinutes ? 60 * value : value;

function describe(run, kind, curve, i, key) {
  const value = isShare(key) ? `${(100 * curve[key][i]).toFixed(2)} %` : formatNumber(curve[key][i]);
  const epoch = curve.epoch[i] == null ? "" : `, epoch ${formatNumber(curve.epoch[i])}`;
  return `<b>${literal(run.name)}</b><br>${KINDS[kind].text}<br>step ${curve.step[i]}${epoch}<br>${CHARTS[key].replace(" (%)", "")} ${value}`;
}

function traces(key, x) {
  return runs.flatMap((run, number) => Object.entries(KINDS).flatMap(([kind, style]) => {
    const curve = run.curves[kind], {color, symbol} = lineStyle(number), isTraining = kind === "train";
    if (!curve[key]?.length) return [];
    return [{
      type: "scatter", name: literal(`${run.name}, ${style.text}`), hoverinfo: "text",
      visible: !hidden.has(`run:${run.name}`) && !hidden.has(kind),
      x: curve[x].map(value => place(value, x)), y: curve[key].map(value => value != null && isShare(key) ? 100 * value : value),
      text: curve.step.map((_, i) => describe(run, kind, curve, i, key)),
      mode: isTraining && curve.step.length > 1 ? "lines" : "lines+markers",
      line: {color, width: style.width, dash: style.dash ? "dot" : "solid"}, opacity: isTraining && key in run.curves["eval/raw"] ? .6 : 1,
      marker: {color, size: isTraining ? 5 : 8, symbol: style.open ? `${symbol}-open` : symbol},
    }];
  }));
}

function draw() {
  const x = element("x").value;
  const shapes = runs.flatMap((run, number) => run.phase_starts.filter(start => start[x] != null && !hidden.has(`run:${run.name}`)).map(
    start => ({type: "line", yref: "paper", y0: 0, y1: 1, x0: place(start[x], x), x1: place(start[x], x), opacity: .6,
      line: {color: lineStyle(number).color, width: 1.5, dash: "dot"}})));
  for (const [key, title] of Object.entries(CHARTS)) {
    const drawn = traces(key, x), isLog = key === "loss" && element("scale").value === "log";
    const yaxis = isLog ? logTicks(drawn.flatMap(trace => trace.y)) : {rangemode: key === "loss" ? "normal" : "tozero", type: "linear"};
    const format = key === "learning_rate" ? {exponentformat: "power"} : {};
    plot(key, drawn, {title: {text: AXES[x]}, rangemode: "tozero"}, {title: {text: title}, ...yaxis, ...format}, {shapes});
  }
}

const TITLES = {
  params: "parameters (M)", macs: "multiply-adds (M)", hours: AXES.hours, epochs: "epochs done",
  steps: "steps done", image_size: "image size (pixels)", ...data.metric_titles,
  first_epoch: "from epoch", end_epoch: "to epoch", changes: "what it sets",
};
const heading = key => TITLES[key] ?? key.replaceAll("_", " ");
function format(value, key) {
  if (typeof value === "number" && data.shares.includes(key)) return (100 * value).toFixed(2);
  return key === "hours" && value != null ? place(value, key).toFixed(1) : formatNumber(value);
}

// Fills a table with the columns that have any value.
function show(id, items) {
  const keys = Object.keys(items[0] ?? {}).filter(key => items.some(item => item[key] != null));
  tabulate(element(id), items, keys, heading, (item, key) => [format(item[key], key)]);
}

function showSettings(id, rows) {
  const keys = ["key", ...runs.keys()];
  const items = rows.map(row => ({key: row.key, ...row.values.map(lines => lines.join("\n"))}));
  tabulate(element(id), items, keys, key => key === "key" ? "key" : runs[key].name, (item, key) => [item[key]]);
}

element("metric").id = metric.key;
element("metric_title").textContent = metric.title.replace(" (%)", "");
document.title = element("title").textContent = data.title;
element("status").textContent = data.status;
addPoints(element("notes"), data.notes);
if (data.evaluations.length) show("evaluations", data.evaluations);
else element("evaluations_hint").textContent = "There is no evaluation yet.";
show("runs", data.overview);
show("phases", data.phases);
element("phases_section").hidden = !data.phases.length;
element("phases_hint").hidden = !runs.some(run => run.phase_starts.length);
element("epochs_hint").hidden = !data.epochs_are_known;
const differences = data.settings.filter(row => row.differs);
element("differences_section").hidden = runs.length < 2;
if (differences.length) showSettings("differences", differences);
else element("differences_hint").textContent = "The configs are the same.";
showSettings("settings", data.settings);

fill(element("x"), Object.entries(AXES), draw);
element("scale").addEventListener("change", draw);
drawLegend(element("runs_legend"), runs.map((run, i) => ({key: `run:${run.name}`, text: run.name, ...lineStyle(i)})), hidden, draw);
const drawnKinds = Object.entries(KINDS).filter(([kind]) => runs.some(run => run.curves[kind].step.length));
drawLegend(element("kinds_legend"), drawnKinds.map(([key, style]) => ({key, symbol: key === "train" ? undefined : "circle", ...style})), hidden, draw);
if (runs.some(isLogged)) draw();
else for (const id of Object.keys(CHARTS)) element(id).textContent = "Nothing is logged yet.";
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => runs.some(isLogged) && draw());
