// One block on a 4 x 4 image: book/_ext/by_hand.py computes the first state, this script the others.
for (const root of document.querySelectorAll("div.by-hand")) {
  const cells = (name) => [...root.querySelectorAll(`[data-values=${name}] :is(input, span)`)];
  const read = (name) => cells(name).map((cell) => Number(cell.value ?? cell.textContent) || 0);
  const write = (name, values) =>
    cells(name).forEach((cell, index) => {
      if (cell.tagName === "INPUT") cell.value = values[index];
      else cell.textContent = values[index];
    });
  const select = root.querySelector("select");
  const range = root.querySelector("input[type=range]");
  const verdict = root.querySelector(".by-hand-verdict");
  const functions = {
    relu: (x, w) => x.map((value) => w * Math.max(0, value - 4)),
    sum: (x, w) => x.map((_, index) => w * (x[index % 4] + x[(index % 4) + 4])),
    largest: (x, w) => x.map(() => w * Math.max(...x)),
  };
  const residual = (x) => functions[select.value](x, Number(range.value)).map((value) => value + 0);

  // The place of each channel's entries in the image.
  const places = [];
  for (const a of [0, 1])
    for (const b of [0, 1])
      for (const row of [0, 1])
        for (const column of [0, 1]) places.push(4 * (2 * row + a) + 2 * column + b);

  const invert = () => {
    const copied = read("copied");
    const change = residual(copied);
    const channels = [...read("added").map((value, index) => value - change[index]), ...copied];
    const image = [];
    places.forEach((place, index) => (image[place] = channels[index]));
    return image;
  };
  const show = (image) => {
    const channels = places.map((place) => image[place]);
    write("other", channels.slice(0, 8));
    write("x", channels.slice(8));
    write("residual", residual(channels.slice(8)));
  };
  const compare = (said) => {
    const returned = invert();
    write("returned", returned);
    const same = read("image").every((value, index) => value === returned[index]);
    verdict.textContent = same ? said : "The inverse differs from the image.";
  };
  const forward = () => {
    const image = read("image");
    show(image);
    const x = read("x");
    write("copied", x);
    write("added", read("other").map((value, index) => value + residual(x)[index]));
    compare("The inverse equals the image, entry by entry.");
  };
  const backward = () => {
    const image = invert();
    write("image", image);
    show(image);
    compare("This image has that representation. Every representation belongs to one image.");
  };

  const start = read("image");
  const initial = [select.value, range.value];
  const count = () => (root.querySelector("output").textContent = range.value);
  for (const cell of cells("image")) cell.addEventListener("input", forward);
  for (const name of ["copied", "added"])
    for (const cell of cells(name)) cell.addEventListener("input", backward);
  select.addEventListener("change", forward);
  range.addEventListener("input", () => {
    count();
    forward();
  });
  root.querySelector("button").addEventListener("click", () => {
    [select.value, range.value] = initial;
    write("image", start);
    count();
    forward();
  });
  for (const control of root.querySelectorAll("[disabled]")) control.disabled = false;
}
