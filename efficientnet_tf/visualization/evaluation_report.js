// The page of an evaluation. `data` is what `make_evaluation_report` collects.
const hidden = new Set();
const WORDS = {classification: "classes", multilabel: "labels", regression: "numbers"};
const SHARES = /precision|recall|f1|top1|exact|calibration/;
const TITLES = {
  top1: "top-1 accuracy", exact: "images with all labels right", macro_average_precision: "mean average precision",
  macro_auroc: "mean AUROC", calibration_error: "expected calibration error", mae: "mean absolute error",
  rmse: "root mean squared error", bias: "mean error", r2: "R2", auroc: "AUROC", f1: "F1",
  best_threshold: "threshold with the best F1",
};
const heading = key => TITLES[key] ?? key.replaceAll("_", " ").replace(/\bf1\b/, "F1");
const format = (value, key) => typeof value === "number" && SHARES.test(key) ? `${(100 * value).toFixed(2)} %` : formatNumber(value);
const diagonal = (low, high) => ({type: "line", x0: low, y0: low, x1: high, y1: high, line: {color: themeColor("--muted"), width: 1.5, dash: "dot"}});

function drawCurves(id, x, y, titles) {
  const traces = data.curves.map((curve, number) => ({
    type: "scatter", mode: "lines", name: literal(curve.name), x: curve[x], y: curve[y], visible: !hidden.has(curve.name),
    line: {color: lineStyle(number).color, width: 2}, hovertemplate: `<b>${literal(curve.name)}</b><br>%{x:.3f}, %{y:.3f}<extra></extra>`,
  }));
  plot(id, traces, {title: {text: titles[0]}, range: [0, 1.01]}, {title: {text: titles[1]}, range: [0, 1.01]});
}

function drawReliability() {
  const bins = data.reliability.filter(bin => bin.examples);
  plot("reliability", [{
    type: "scatter", mode: "lines+markers+text", x: bins.map(bin => bin.confidence), y: bins.map(bin => bin.accuracy),
    text: bins.map(bin => String(bin.examples)), textposition: "top center", textfont: {size: 11}, cliponaxis: false,
    line: {color: data.colors[0], width: 2}, marker: {size: 8}, hovertemplate: "probability %{x:.3f}<br>right %{y:.3f}<extra></extra>",
  }], {title: {text: "probability"}, range: [0, 1.02]}, {title: {text: "share that is right"}, range: [0, 1.08]}, {shapes: [diagonal(0, 1)]});
}

function drawNumbers() {
  data.numbers.forEach(({true: x, predicted: y}, number) => {
    const values = [...x, ...y], low = Math.min(...values), high = Math.max(...values);
    plot(`number${number}`, [{type: "scatter", mode: "markers", x, y, marker: {size: 5, opacity: .5, color: data.colors[0]},
      hovertemplate: "true %{x}<br>predicted %{y}<extra></extra>"}],
    {title: {text: "true"}}, {title: {text: "predicted"}}, {shapes: [diagonal(low, high)]});
  });
}

function drawConfusion() {
  const {names, counts} = data.confusion, labels = names.map(literal), side = Math.max(320, Math.min(1200, 22 * names.length + 160));
  const totals = counts.map(row => row.reduce((a, b) => a + b, 0));
  Object.assign(element("confusion").style, {height: `${side}px`, maxWidth: `${side + 120}px`});
  plot("confusion", [{
    type: "heatmap", x: labels, y: labels, z: counts.map((row, i) => row.map(count => totals[i] ? count / totals[i] : null)),
    customdata: counts, zmin: 0, zmax: 1, colorscale: [[0, themeColor("--background")], [1, data.colors[0]]], colorbar: {thickness: 12, tickformat: ".0%"},
    hovertemplate: "true: %{y}<br>predicted: %{x}<br>%{customdata} images, %{z:.1%}<extra></extra>",
  }], {title: {text: "predicted"}, type: "category", side: "bottom"}, {title: {text: "true"}, type: "category", autorange: "reversed"});
}

function draw() {
  if (data.curves.length) {
    drawCurves("precision_recall", "recall", "precision", ["recall", "precision"]);
    drawCurves("roc", "false_positive_rate", "true_positive_rate", ["false positive rate", "true positive rate"]);
  }
  if (data.reliability.length) drawReliability();
  if (data.numbers.length) drawNumbers();
  if (data.confusion) drawConfusion();
}

function addMistake({picture, true: right, predicted, name}) {
  const figure = document.createElement("figure"), image = document.createElement("img"), caption = document.createElement("figcaption");
  image.src = picture;
  image.alt = name;
  for (const [what, text] of [["true", right], ["predicted", predicted]]) {
    const line = document.createElement("div");
    line.append(small(`${what}: `), text);
    caption.append(line);
  }
  const source = document.createElement("div");
  source.append(small(name));
  caption.append(source);
  figure.append(image, caption);
  element("mistakes").append(figure);
}

document.title = element("title").textContent = data.title;
element("status").textContent = data.status;
tabulate(element("summary"), data.summary, ["metric", "value"], key => key,
  (item, key) => [key === "metric" ? heading(item.metric) : format(item.value, item.metric)]);
const word = WORDS[data.task];
element("rows_title").textContent = word[0].toUpperCase() + word.slice(1);
tabulate(element("rows"), data.rows, Object.keys(data.rows[0]), heading, (item, key) => [format(item[key], key)]);
element("curves_section").hidden = !data.curves.length;
element("reliability_section").hidden = !data.reliability.length;
element("numbers_section").hidden = !data.numbers.length;
element("confusion_section").hidden = !data.confusion;
data.numbers.forEach(({name}, number) => {
  const part = document.createElement("div"), title = document.createElement("h3"), chart = document.createElement("div");
  title.textContent = name;
  Object.assign(chart, {id: `number${number}`, className: "plot"});
  part.append(title, chart);
  element("numbers").append(part);
});
drawLegend(element("curves_legend"), data.curves.map((curve, i) => ({key: curve.name, text: curve.name, color: lineStyle(i).color})), hidden, draw);
element("mistakes_hint").textContent = data.mistakes.length
  ? "Images with the highest loss first, cropped as the network sees them." : "There is none.";
data.mistakes.forEach(addMistake);
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
