// The viewer of a slide. `window.slide` holds what to show, see bach/report/viewer.py. Nothing is
// fetched: tiles are pictures beside the page.
"use strict";

(function () {
  const slide = window.slide;
  const byId = (id) => document.getElementById(id);

  // One unit of the viewer is the width of the slide.
  const unit = slide.width;

  // Canvas: WebGL may not use pictures of pages from file://.
  const viewer = OpenSeadragon({
    element: byId("viewer"),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "BOTTOM_RIGHT",
    navigatorSizeRatio: 0.16,
    maxZoomPixelRatio: 4,
    visibilityRatio: 0.2,
    animationTime: 0.3,
    crossOriginPolicy: false,
    placeholderFillStyle: "#fff",
    gestureSettingsMouse: { clickToZoom: false },
    gestureSettingsTouch: { pinchRotate: false },
  });

  function source(folder, about) {
    return {
      width: about.width,
      height: about.height,
      tileSize: about.tile,
      tileOverlap: 0,
      minLevel: 0,
      maxLevel: about.levels - 1,
      getTileUrl: (level, x, y) => `${folder}/${level}/${x}_${y}.${about.suffix}`,
    };
  }

  // Layers are added in their order, each when the one before is there.
  const items = {};
  const images = [];
  if (slide.image) images.push(["tiles", slide.image, 1]);
  for (const layer of slide.layers) images.push([layer.key, layer, layer.opacity]);

  function add(index) {
    if (index === images.length) {
      for (const place of slide.places) addCrop(place);
      land();
      document.body.dataset.ready = "true"; // tests wait for it
      return;
    }
    const [key, about, opacity] = images[index];
    viewer.addTiledImage({
      tileSource: source(key, about),
      x: 0,
      y: 0,
      width: (about.width * about.scale) / unit,
      opacity: opacity,
      success: (event) => {
        items[key] = event.item;
        add(index + 1);
      },
    });
  }

  // A place in full resolution lies over the slide and under the layers.
  function addCrop(place) {
    if (!place.picture) return;
    viewer.addTiledImage({
      tileSource: {
        width: place.across,
        height: place.down,
        tileSize: Math.max(place.across, place.down),
        minLevel: 0,
        maxLevel: 0,
        getTileUrl: () => place.picture,
      },
      index: 1,
      x: place.left / unit,
      y: place.top / unit,
      width: place.across / unit,
    });
  }

  // Layers: a box to tick and a slider each, by mouse, finger or keyboard (1 to 4).

  function setOpacity(key, value) {
    const slider = byId(`opacity-${key}`);
    slider.value = Math.round(value * 100);
    byId(`value-${key}`).textContent = `${slider.value}%`;
    byId(`show-${key}`).checked = value > 0;
    if (items[key]) items[key].setOpacity(value);
  }

  slide.layers.forEach((layer, index) => {
    let last = layer.opacity || 0.5;
    const slider = byId(`opacity-${layer.key}`);
    const box = byId(`show-${layer.key}`);
    const turn = (on) => setOpacity(layer.key, on ? last : 0);
    slider.addEventListener("input", () => {
      const value = slider.value / 100;
      if (value > 0) last = value;
      setOpacity(layer.key, value);
    });
    box.addEventListener("change", () => turn(box.checked));
    document.addEventListener("keydown", (event) => {
      if (event.key === String(index + 1) && !typing(event)) turn(!box.checked);
    });
    setOpacity(layer.key, layer.opacity);
  });

  function typing(event) {
    return event.ctrlKey || event.metaKey || event.altKey || /text|number/.test(event.target.type);
  }

  // Buttons and keys beside those of OpenSeadragon (arrows, + and -, 0).

  const stage = byId("viewer").parentElement;
  const zoom = (factor) => viewer.viewport.zoomBy(factor).applyConstraints();
  const turn = (by) => viewer.viewport.setRotation(viewer.viewport.getRotation() + by);
  const actions = {
    in: () => zoom(1.5),
    out: () => zoom(1 / 1.5),
    home: () => {
      viewer.viewport.setRotation(0);
      viewer.viewport.goHome();
    },
    turn: () => turn(90),
    full: () => (document.fullscreenElement ? document.exitFullscreen() : stage.requestFullscreen()),
  };
  for (const [name, action] of Object.entries(actions)) {
    byId(`do-${name}`).addEventListener("click", action);
  }
  byId("do-full").hidden = !document.fullscreenEnabled;
  viewer.addHandler("rotate", (event) => {
    byId("north").style.transform = `rotate(${event.degrees}deg)`;
  });

  for (const box of document.querySelectorAll("input.marks")) {
    const show = () => byId("viewer").classList.toggle(`with-${box.dataset.kind}`, box.checked);
    box.addEventListener("change", show);
    document.addEventListener("keydown", (event) => {
      if (event.key !== box.dataset.key || typing(event)) return;
      box.checked = !box.checked;
      show();
    });
    show();
  }

  // Places: a box on the slide, and a link to it whose address can be kept and sent.

  function rectangle(x, y, width, height) {
    return new OpenSeadragon.Rect(x / unit, y / unit, width / unit, height / unit);
  }

  function hashOf(place) {
    return `#x=${Math.round(place.x)},y=${Math.round(place.y)},w=${Math.round(place.size)}`;
  }

  for (const place of slide.places) {
    const box = document.createElement("div");
    box.className = `mark ${place.kind}`;
    box.title = `${place.title}\n${place.text}`;
    // Hard examples overlap so much that whole ones would hide each other: the middle fifth.
    const rest = place.kind === "example" ? 0.4 * place.size : 0;
    const side = place.size - 2 * rest;
    const location = rectangle(place.x + rest, place.y + rest, side, side);
    viewer.addOverlay({ element: box, location: location });
  }

  const here = document.createElement("div");
  here.className = "mark here";

  function land() {
    const found = /^#x=(-?[\d.]+),y=(-?[\d.]+),w=([\d.]+)$/.exec(location.hash);
    if (!found) return;
    const [x, y, size] = found.slice(1).map(Number);
    viewer.viewport.setRotation(0, true);
    viewer.viewport.fitBounds(rectangle(x - size / 2, y - size / 2, 2 * size, 2 * size), true);
    viewer.removeOverlay(here);
    viewer.addOverlay({ element: here, location: rectangle(x, y, size, size) });
    for (const link of document.querySelectorAll("a.place")) {
      link.toggleAttribute("aria-current", link.getAttribute("href") === location.hash);
    }
  }
  window.addEventListener("hashchange", land);
  for (const link of document.querySelectorAll("a.place")) {
    link.setAttribute("href", hashOf(slide.places[Number(link.dataset.place)]));
    link.addEventListener("click", () => {
      if (link.getAttribute("href") === location.hash) land(); // a second time
      byId("viewer").scrollIntoView({ block: "nearest" });
    });
  }

  // What the network says of the place under the pointer, or in the middle of the view.

  const probs = slide.cells
    ? Uint8Array.from(atob(slide.cells.probs), (letter) => letter.charCodeAt(0))
    : null;

  function say(point) {
    const x = point.x * unit;
    const y = point.y * unit;
    let text = `x ${Math.round(x)}, y ${Math.round(y)} px`;
    if (probs) {
      const { rows, cols, step } = slide.cells;
      const [row, col] = [Math.floor(y / step), Math.floor(x / step)];
      const inside = row >= 0 && col >= 0 && row < rows && col < cols;
      const classes = slide.classes.length;
      const start = (row * cols + col) * classes;
      if (inside && probs[start] < 255) {
        const shares = slide.classes.map((one, k) => `${one} ${(probs[start + k] / 254).toFixed(2)}`);
        text += `: ${shares.join(", ")}`;
      } else {
        text += inside ? ": not predicted, too little tissue" : ": beside the slide";
      }
    }
    byId("readout").textContent = text;
  }

  new OpenSeadragon.MouseTracker({
    element: viewer.canvas,
    moveHandler: (event) => {
      if (viewer.world.getItemCount()) say(viewer.viewport.pointFromPixel(event.position));
    },
  });

  // Scale bar: a round length of some 100 px.

  function drawScale() {
    const perUnit = viewer.viewport.getContainerSize().x * viewer.viewport.getZoom(true); // px
    const micrometres = (slide.width * slide.mpp) / perUnit; // per px of the screen
    const most = micrometres * 150;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((n) => n * power).find((n) => n <= most) || power;
    byId("scale").style.width = `${length / micrometres}px`;
    byId("scale").textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  }
  viewer.addHandler("viewport-change", () => {
    drawScale();
    if (matchMedia("(hover: none)").matches) say(viewer.viewport.getCenter(true));
  });
  viewer.addHandler("open", drawScale);
  viewer.addHandler("resize", drawScale);
  viewer.world.addHandler("add-item", (event) => {
    if (viewer.world.getItemCount() === 1) {
      viewer.viewport.goHome(true);
      drawScale();
    }
  });

  add(0);
})();
