// Moves through the steps of the pictures that the directive {slider} has put on the page.
for (const slider of document.querySelectorAll("div.slider")) {
  const view = slider.querySelector(".slider-view");
  const input = view.querySelector("input");
  const output = view.querySelector("output");
  const squares = view.querySelectorAll(".slider-square");
  const notes = view.querySelectorAll(".slider-note");
  const walk = JSON.parse(view.dataset.walk);
  const source = slider.querySelector("figure img").src;
  // A background position of 100% shows the last part, so the step is 100% over the count minus one.
  const percent = (index, count) => (count > 1 ? (100 * index) / (count - 1) : 0);

  const show = () => {
    const step = Number(input.value);
    squares.forEach((square, row) => {
      const column = percent(step, walk.values.length);
      square.style.backgroundPosition = `${column}% ${percent(row, squares.length)}%`;
      notes[row].textContent = walk.notes[row][step];
    });
    output.textContent = walk.values[step];
    input.setAttribute("aria-valuetext", walk.values[step]);
  };

  for (const square of squares) {
    square.style.backgroundImage = `url("${source}")`;
    square.style.backgroundSize = `${100 * walk.values.length}% ${100 * squares.length}%`;
  }
  input.addEventListener("input", show);
  show();
  view.hidden = false;
  slider.classList.add("slider-ready");
}
