"use strict";
// Segment a photo with the small model, in the browser alone. From top to bottom: read a photo, run
// the network, find the best class of each pixel, show it.

const LONGEST_SIDE = 1024;  // pixels of the picture that is shown
const MOST_MEGAPIXELS = 50;  // of a photo: the network's first step needs 15 MB for each
const STRIP = 512;  // rows: phones have no canvas for a large photo

// An error whose message is a sentence for the visitor.
class Problem extends Error {}

// ---- Read a photo.

// Return a photo, turned upright and with its colours in sRGB by the browser.
async function decode(file) {
  let photo;
  try {
    photo = await createImageBitmap(file, {imageOrientation: "from-image"});
  } catch {
    throw new Problem(`${file.name} is not a photo that this browser can read. ` +
      "Choose a JPEG or PNG file; save photos of other kinds as JPEG first.");
  }
  const megapixels = photo.width * photo.height / 1e6;
  if (megapixels > MOST_MEGAPIXELS)
    throw new Problem(`${file.name} has ${Math.round(megapixels)} megapixels. ` +
      `Choose one with at most ${MOST_MEGAPIXELS}.`);
  return photo;
}

// Return the tools to draw on a new canvas. It is white: so are transparent pixels then.
function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  return context;
}

// Return what the network takes: uint8 [1, 3, height, width], all red values, then green, blue.
// The photo has its full size here: how it is resized matters, so that is in the network's file.
function toTensor(photo) {
  const {width, height} = photo;
  const pixels = width * height;
  const planes = new Uint8Array(3 * pixels);
  for (let top = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    const context = newCanvas(width, rows);
    context.drawImage(photo, 0, -top);
    const rgba = context.getImageData(0, 0, width, rows).data;
    for (let i = 0; i < width * rows; i++)
      for (let color = 0; color < 3; color++)
        planes[color * pixels + top * width + i] = rgba[4 * i + color];
  }
  return new ort.Tensor("uint8", planes, [1, 3, height, width]);
}

// ---- The network.

let loading = null;

// Load the network, and what is known about it, once.
function load() {
  loading ??= loadAll().catch(error => {
    loading = null;  // the next click tries again
    throw error;
  });
  return loading;
}

async function loadAll() {
  if (location.protocol === "file:")
    throw new Problem("Browsers load a network from a server only: " +
      "run python -m http.server --directory build/site, and open the address that it prints.");
  if (typeof WebAssembly !== "object" || typeof ort !== "object")
    throw new Problem("This browser cannot run the network: it has no WebAssembly, or it is " +
      "switched off. A current Firefox, Chrome, Edge or Safari can. " +
      "The notebooks show results without it.");
  ort.env.wasm.wasmPaths = new URL("ort/", location.href).href;
  ort.env.wasm.numThreads = 1;  // more of them need headers that simple servers do not send
  ort.env.wasm.proxy = true;  // in a worker: the page can be used meanwhile
  const get = async name => {
    const answer = await fetch("model/" + name);
    if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
    return answer;
  };
  const [about, inspector, file] = await Promise.all([
    get("about.json").then(answer => answer.json()),
    get("inspector.html").then(answer => answer.text()),
    get("small.onnx").then(answer => answer.arrayBuffer()),
  ]);
  return {about, inspector, network: await ort.InferenceSession.create(new Uint8Array(file))};
}

// ---- From the network's numbers to classes.

// Return float32 [h, w, classes]. The network gives float32 [1, classes * block * block, h / block,
// w / block]: the numbers of each block of pixels are in channels of their own.
function toPixels(logits, block) {
  const [, channels, rows, columns] = logits.dims;
  const classes = channels / block ** 2;
  const width = columns * block;
  const values = new Float32Array(logits.data.length);
  let i = 0;
  for (let c = 0; c < classes; c++)
    for (let down = 0; down < block; down++)
      for (let right = 0; right < block; right++)
        for (let y = 0; y < rows; y++)
          for (let x = 0; x < columns; x++)
            values[((y * block + down) * width + x * block + right) * classes + c] =
              logits.data[i++];
  return {values, classes, width, height: rows * block};
}

// Return, for each of `after` places on a line of `before` values, the two values it lies between
// and how far it is to the second one: as torch.nn.functional.interpolate(mode="bilinear") does.
function between(before, after) {
  return Array.from({length: after}, (_, i) => {
    const place = Math.max(0, Math.min(before - 1, (i + 0.5) * before / after - 0.5));
    const first = Math.floor(place);
    return {first, second: Math.min(before - 1, first + 1), share: place - first};
  });
}

// Return the best class of each pixel of a picture, uint8 [height, width].
function bestClasses(logits, block, height, width) {
  const small = toPixels(logits, block);
  const {values, classes} = small;
  const best = new Uint8Array(height * width);
  const columns = between(small.width, width);
  const length = small.width * classes;
  const row = new Float32Array(length);
  between(small.height, height).forEach(({first, second, share}, y) => {
    for (let i = 0; i < length; i++) {
      const above = values[first * length + i];
      row[i] = above + share * (values[second * length + i] - above);
    }
    columns.forEach(({first, second, share}, x) => {
      let largest = -Infinity;
      for (let c = 0; c < classes; c++) {
        const left = row[first * classes + c];
        const value = left + share * (row[second * classes + c] - left);
        if (value > largest) {
          largest = value;
          best[y * width + x] = c;
        }
      }
    });
  });
  return best;
}

// ---- Show it.

const escape = text => text.replace(/[&"<>]/g, sign => `&#${sign.charCodeAt(0)};`);

// Return the address of a picture with the colour of each class.
function paint(best, width, height, colors) {
  const context = newCanvas(width, height);
  const image = context.createImageData(width, height);
  best.forEach((index, i) => image.data.set([...colors[index], 255], 4 * i));
  context.putImageData(image, 0, 0);
  return context.canvas.toDataURL("image/png");
}

// Put the inspector of the notebooks into the page; return the largest classes in words.
function show(canvas, best, model, truth) {
  const {about} = model;
  const {width, height} = canvas;
  const counts = new Array(about.names.length).fill(0);
  for (const index of best) counts[index]++;
  const order = about.names.map((_, index) => index).filter(index => counts[index]);
  const largest = [...order].sort((a, b) => counts[b] - counts[a]).slice(0, 4);
  const shares = largest.map(index =>
    `${about.names[index]} ${Math.round(100 * counts[index] / best.length)} %`);
  const seen = shares.join(", ");
  const left = truth ? "truth" : "photo";
  const map = (side, name, alt, source) => `<img class="map ${side}" data-name="${name}" ` +
    `width="240" height="120" alt="${escape(alt)}" src="${source}">`;
  const prediction = paint(best, width, height, about.colors);
  const classes = about.colors.map((color, index) => [color.join(), about.names[index]]);
  classes.push(["0,0,0", "void"]);
  const fields = {
    classes: escape(JSON.stringify(Object.fromEntries(classes))),
    aspect: width / height,
    height: 120,
    names: (truth ? ["photo", left, "prediction"] : [left, "prediction"])
      .map(name => `<span>${name}</span>`).join(" "),
    wipe: `wipe: ${left} on the left, prediction on the right`,
    seen: escape(`prediction: ${seen}.`),
    photo: canvas.toDataURL("image/jpeg", 0.9).split(",")[1],
    maps: (truth ? map("left", "truth", "the true classes", truth) : "") +
      map("right", "prediction", "prediction: " + seen, prediction),
    legend: order.map(index => `<li><i style="background: rgb(${about.colors[index]})"></i>` +
      `${escape(about.names[index])}</li>`).join(""),
  };
  const page = model.inspector.replace(/\{\{(\w+)\}\}/g, (_, name) => fields[name]);
  // Unlike innerHTML, this runs the inspector's script.
  const fragment = document.createRange().createContextualFragment(page);
  document.querySelector("#result").replaceChildren(fragment);
  return seen;
}

// Return a canvas with the photo as it is shown: reduced if it is large.
function draw(photo) {
  const factor = Math.min(1, LONGEST_SIDE / Math.max(photo.width, photo.height));
  const [width, height] = [photo.width, photo.height].map(
    side => Math.max(1, Math.round(factor * side)));
  const context = newCanvas(width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(photo, 0, 0, width, height);
  return context.canvas;
}

const status = document.querySelector("#status");
let turns = 0;

// Segment a photo; `truth` is the address of its true classes, null if nobody knows them.
async function segment(getFile, truth) {
  const turn = ++turns;  // a click during the work begins anew: only the last result is shown
  const say = text => {
    if (turn === turns) status.textContent = text;
  };
  try {
    say("Loading the network ...");
    const model = await load();
    say("Looking at the photo ...");
    const photo = await decode(await getFile());
    const start = performance.now();
    const {logits} = await model.network.run({images: toTensor(photo)});
    if (turn !== turns) return;
    const shown = draw(photo);
    const best = bestClasses(logits, model.about.block, shown.height, shown.width);
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    say(`Done in ${seconds} seconds: ${show(shown, best, model, truth)}.`);
  } catch (error) {
    console.warn(error);
    const sentence = error instanceof Problem ? error.message :
      `This did not work (${error.message ?? error}). Check the connection and try again, ` +
      "with a smaller photo if it was a large one.";
    say(sentence);
  }
}

document.querySelector("#street").addEventListener("click", () =>
  segment(async () => (await fetch("model/street.png")).blob(), "model/truth.png"));
const photo = document.querySelector("#photo");
photo.addEventListener("click", () => photo.value = "");  // the same file can be chosen again
photo.addEventListener("change", () => {
  const [file] = photo.files;
  if (file) segment(async () => file, null);
});
