// The page is complete without this: it adds a threshold that can be moved.
for (const figure of document.querySelectorAll("figure[data-movable]")) {
  const { edges, positions, above, noisy, batches } = JSON.parse(figure.dataset.movable);
  const label = document.createElement("label");
  label.className = "move";
  label.textContent = "Move a threshold";
  const slider = document.createElement("input");
  const start = above.findIndex((count) => count <= 0.005 * above[0]);
  Object.assign(slider, { type: "range", min: 0, max: edges.length - 1, step: 1, value: start });
  slider.style.marginLeft = `${positions[0]}%`;
  slider.style.width = `${positions.at(-1) - positions[0]}%`;
  const output = document.createElement("output");
  label.append(slider, output);
  figure.querySelector(".chart").after(label);
  const lines = figure.querySelectorAll(".probe");
  const share = (part, whole) =>
    whole ? `${((100 * part) / whole).toLocaleString("en", { maximumSignificantDigits: 2 })} %` : "–";
  const show = () => {
    const at = Number(slider.value);
    for (const line of lines) {
      line.setAttribute("x1", `${positions[at]}%`);
      line.setAttribute("x2", `${positions[at]}%`);
      line.removeAttribute("visibility");
    }
    const perBatch = (count) =>
      (count / batches).toLocaleString("en", { maximumFractionDigits: count < 100 * batches ? 1 : 0 });
    let text = `cosine ${edges[at].toFixed(3)}: removes ${perBatch(above[at])} of ${perBatch(above[0])} negatives a batch (${share(above[at], above[0])})`;
    if (noisy) text += `, precision ${share(noisy[at], above[at])}, recall ${share(noisy[at], noisy[0])}`;
    output.textContent = text;
  };
  slider.addEventListener("input", show);
  show();
}
