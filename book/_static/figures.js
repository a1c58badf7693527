// Opens a figure as large as the window: by click, or by Enter on the figure's link.
document.addEventListener("DOMContentLoaded", () => {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Figure, enlarged");
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  dialog.append(close);
  document.body.append(dialog);
  dialog.addEventListener("click", () => dialog.close());

  for (const image of document.querySelectorAll("article figure > img, article figure > a > img")) {
    if (image.closest(".slider")) continue;
    const wrapped = image.parentElement.tagName === "A";
    const link = wrapped ? image.parentElement : document.createElement("a");
    if (!link.isConnected) {
      image.replaceWith(link);
      link.append(image);
    }
    link.href = image.src;
    link.classList.add("enlarge");
    link.title = "Enlarge";
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      // Made anew each time: a page that was not touched holds no image without a source.
      const large = document.createElement("img");
      large.src = image.src;
      large.alt = image.alt;
      dialog.replaceChildren(close, large);
      dialog.showModal();
    });
  }
});
