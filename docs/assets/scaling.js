// The slider of the figure about compound scaling: moves the point and shows the scaled network.
for (const figure of document.querySelectorAll("[data-scaling]")) {
  const { points, places } = JSON.parse(figure.dataset.scaling);
  const [slider, marker, output] = ["input", ".marker", "output"].map((name) => figure.querySelector(name));
  const show = () => {
    const [phi, depth, width, pixels, params, macs] = points[slider.value];
    const [x, y] = places[slider.value];
    marker.setAttribute("cx", x);
    marker.setAttribute("cy", y);
    output.textContent =
      `phi ${phi}: depth ${depth.toFixed(2)}, width ${width.toFixed(2)}, ${pixels} pixels, ` +
      `${(params / 1e6).toFixed(1)} M parameters, ${(macs / 1e9).toFixed(2)} billion multiply-adds`;
  };
  slider.addEventListener("input", show);
  show();
}
