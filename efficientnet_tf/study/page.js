// The page of a study. `data` holds the fields of StudyInfo, the runs, the lines and the columns.
const {info, rows, lines, columns} = data;
const points = [...new Map(lines.flatMap(line => line.points).map(point => [point.name, point])).values()];
const labels = Object.keys(rows[0] ?? {}).filter(key => !(key in columns) && !["run", "config"].includes(key));
const hidden = new Set();  // names of lines

// Returns a measurement in the unit of its column. Labels and missing values are returned as they are.
const scaled = (value, key) => value == null || !(key in columns) ? value : value / columns[key].scale;
function format(value, key) {
  const number = scaled(value, key);
  return typeof number === "number" && columns[key]?.unit === "%" ? number.toFixed(2) : formatNumber(number);
}
function spread(item, key) {
  const value = scaled(item[`${key}_spread`], key);
  if (value == null) return "";
  return ` \u00b1 ${columns[key].unit === "%" ? value.toFixed(2) : Number(value.toPrecision(2))}`;
}
const title = key => columns[key]?.title ?? key.replaceAll("_", " ");

function describe(item, name) {
  const values = labels.filter(key => item[key] != null).map(key => literal(`${key.replaceAll("_", " ")} ${format(item[key])}`)).join(", ");
  const numbers = Object.entries(columns).filter(([key]) => item[key] != null).map(
    ([key, column]) => `${column.label} ${format(item[key], key)}${spread(item, key)} ${column.unit}`);
  const seeds = item.seeds ? [`${item.seeds} ${item.seeds === 1 ? "seed" : "seeds"}`] : [];
  return [`<b>${literal(name)}</b>`, values, ...numbers, ...seeds].filter(Boolean).join("<br>");
}

// Returns two traces for each line: its means with error bars, and its single runs as faint markers.
function traces(x, y) {
  return lines.flatMap((line, i) => {
    const {color, symbol} = lineStyle(i);
    const names = new Set(line.points.filter(point => point.seeds > 1).flatMap(point => point.runs));
    const runs = rows.filter(row => names.has(row.run));
    const trace = (items, name, more) => ({
      type: "scatter", name: literal(line.name), hoverinfo: "text", visible: !hidden.has(line.name),
      x: items.map(item => scaled(item[x], x)), y: items.map(item => scaled(item[y], y)),
      text: items.map(item => describe(item, name(item))), ...more,
    });
    return [
      trace(line.points, point => point.name, {
        mode: info.is_joined ? "lines+markers" : "markers", line: {color, width: 2}, marker: {color, size: 9, symbol},
        error_y: {type: "data", array: line.points.map(point => scaled(point[`${y}_spread`], y) ?? 0), thickness: 1.2, width: 4},
      }),
      trace(runs, run => run.run, {mode: "markers", marker: {color, size: 5, opacity: .35}}),
    ];
  });
}

function draw() {
  const [x, y, scale] = ["x", "y", "scale"].map(id => element(id).value), drawn = traces(x, y);
  const xScale = scale === "log" ? logTicks(drawn.flatMap(trace => trace.x)) : {type: "linear"};
  plot("plot", drawn, {...xScale, title: {text: columns[x].title}}, {title: {text: columns[y].title}});
}

document.title = element("title").textContent = info.title;
element("summary").textContent = info.summary;
element("status").textContent = rows.length < info.planned_runs
  ? `Unfinished: ${rows.length} of ${info.planned_runs} runs are done. This page shows only those.` : `All ${rows.length} runs are done.`;
element("command").textContent = info.command;
for (const id of ["conclusions", "caveats"]) addPoints(element(id), info[id]);
for (const file of data.files) element("files").append(link(file, file), " ");

const measured = Object.keys(columns).filter(key => rows.some(row => row[key] != null));
const available = keys => keys.filter(key => measured.includes(key)).map(key => [key, columns[key].title]);
fill(element("x"), available(data.x), draw);
fill(element("y"), available(data.y), draw);
element("scale").addEventListener("change", draw);
tabulate(element("networks"), points, ["name", ...labels.filter(key => key !== "seed"), ...measured, "seeds"], title,
  (point, key) => [format(point[key], key), small(spread(point, key))]);
tabulate(element("runs"), rows, ["run", ...labels, ...measured], title,
  (row, key) => [key === "run" && row.config ? link(row.run, row.config) : format(row[key], key)]);
if (rows.length) {
  drawLegend(element("legend"), lines.map((line, i) => ({key: line.name, text: line.name, ...lineStyle(i)})), hidden, draw);
  draw();
} else element("plot").textContent = "No run is finished yet.";
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => rows.length && draw());
