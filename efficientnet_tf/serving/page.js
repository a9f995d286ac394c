"use strict";

const byId = (id) => document.getElementById(id);
let current = null;  // the image file that is shown
let explanation = null;  // {crop: image, heat: canvas}, once it has arrived
let classCount = 1;

async function send(path, file) {
  const response = await fetch(path, { method: "POST", body: file });
  const answer = await response.json().catch(() => ({ error: `The server answered with the status ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function showMessage(text) {
  byId("message").hidden = !text;
  byId("message").textContent = text || "";
}

async function classify(file) {
  if (!file) return;
  current = file;
  explanation = null;
  showMessage("");
  byId("drop").classList.add("busy");
  try {
    const { predictions } = await send(`classify?top=${Math.min(classCount, 8)}`, file);
    if (current !== file) return;
    showPredictions(predictions);
    byId("picture").getContext("2d").clearRect(0, 0, byId("picture").width, byId("picture").height);
    byId("explained").textContent = byId("method").textContent = "…";
    byId("result").hidden = false;
    await explain(predictions[0].label);
  } catch (error) {
    if (current !== file) return;
    byId("result").hidden = true;
    showMessage(error instanceof TypeError ? "The server does not answer." : error.message);
  } finally {
    if (current === file) byId("drop").classList.remove("busy");
  }
}

function showPredictions(predictions) {
  byId("answer").textContent = predictions[0].label;
  byId("predictions").replaceChildren(...predictions.map(({ label, probability }) => {
    const tags = ["li", "button", "i", "span", "span"];
    const [item, button, bar, name, value] = tags.map((tag) => document.createElement(tag));
    bar.style.width = `${100 * probability}%`;
    name.textContent = label;
    value.textContent = `${(100 * probability).toFixed(1)} %`;
    button.append(bar, name, value);
    button.dataset.label = label;
    button.addEventListener("click", () => explain(label).catch((error) => showMessage(error.message)));
    item.append(button);
    return item;
  }));
}

async function explain(label) {
  const file = current;
  const answer = await send(`explain?label=${encodeURIComponent(label)}`, file);
  const crop = new Image();
  crop.src = answer.crop;
  await crop.decode();
  if (current !== file) return;
  explanation = { crop, heat: drawHeat(answer.heat) };
  byId("explained").textContent = answer.label;
  byId("method").textContent = answer.method;
  for (const button of document.querySelectorAll("#predictions button")) {
    button.setAttribute("aria-pressed", String(button.dataset.label === answer.label));
  }
  draw();
}

/* One pixel per value, from blue for the least to yellow for the greatest. The browser smooths it when it is enlarged. */
function drawHeat(rows) {
  const values = rows.flat();
  const low = Math.min(...values);
  const range = Math.max(...values) - low || 1;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [rows[0].length, rows.length];
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  values.forEach((value, index) => {
    const share = (value - low) / range;
    image.data.set([255 * share, 60 + 160 * share, 160 * (1 - share), 60 + 130 * share], 4 * index);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function draw() {
  if (!explanation) return;
  const canvas = byId("picture");
  canvas.height = Math.round(canvas.width * explanation.crop.height / explanation.crop.width);
  const context = canvas.getContext("2d");
  const isOverlaid = byId("overlay").checked;
  context.imageSmoothingQuality = "high";
  context.filter = isOverlaid ? "grayscale(1)" : "none";
  context.drawImage(explanation.crop, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  if (isOverlaid) context.drawImage(explanation.heat, 0, 0, canvas.width, canvas.height);
}

async function start() {
  const model = await (await fetch("model")).json();
  classCount = model.classes.length;
  document.title = `${model.name}: classify an image`;
  byId("name").textContent = model.name;
  byId("about").textContent =
    `${model.network}, ${classCount.toLocaleString("en")} classes, images of ${model.image_size.join(" × ")} pixels`;
}

const drop = byId("drop");
byId("file").addEventListener("change", (event) => classify(event.target.files[0]));
byId("overlay").addEventListener("change", draw);
drop.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") byId("file").click();
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  classify(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => classify(event.clipboardData.files[0]));
start();
