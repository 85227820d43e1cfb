// The page: sends pictures to the server beside it and shows what it answers. Nothing else is asked.

const AT_ONCE = 6; // Requests, as browsers have them to one host; the server groups them.
const TRIES = 6; // Of a picture, while the server says that it is full.
const KEPT = 200; // Pictures on the page; the oldest give way.
const SMALL = 128; // Pixels below which a picture is shown pixel by pixel.

const by = (id) => document.getElementById(id);
// With spaces at which no line breaks.
const percent = (fraction, digits = 0) => `${(100 * fraction).toFixed(digits)}\u00a0%`;
const fill = (bar, fraction) => {
  bar.style.width = `${100 * Math.min(1, fraction)}%`;
};
const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

let model = null;
let points = [];
const pictures = []; // {file, card, answer, turn}, the newest first.
const waiting = [];
let running = 0;

function gmacs(value) {
  return `${value >= 0.1 ? value.toFixed(2) : value.toPrecision(2)}\u00a0GMACs`;
}

function setBusy(card, busy) {
  card.classList.toggle("busy", busy);
  card.setAttribute("aria-busy", String(busy));
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

// What the model is, and what its budgets cost.

async function start() {
  const response = await fetch("model");
  model = await response.json();
  points = model.points;
  const sizes = model.resolutions.map((size) => `${size} px`).join(", ");
  const how = model.first_look
    ? "A small first look at every picture; a closer one only where it is needed"
    : "A small predictor picks the resolution that each picture needs";
  const known = counted(model.classes.length, "class", "classes");
  by("about").textContent =
    model.resolutions.length === 1 ? `${known} at ${sizes}` : `${how}: ${known} at ${sizes}.`;
  if (points.length > 1) {
    const slider = by("slider");
    slider.max = points.length - 1;
    slider.value = nearest(model.default_lam);
    slider.addEventListener("input", showBudget);
    slider.addEventListener("change", () => again());
    by("budget").hidden = false;
    showBudget();
  }
}

function nearest(lam) {
  const distances = points.map((point) => Math.abs(point.lam - lam));
  return distances.indexOf(Math.min(...distances));
}

function budget() {
  return points.length > 1 ? points[Number(by("slider").value)] : null;
}

function showBudget() {
  const { top1, cost, gmacs: price } = budget();
  const text = `about ${percent(top1, 1)} right at ${percent(cost)} of the cost`;
  by("expected").textContent = text;
  by("expected").title = `${gmacs(price)} a picture, as measured when it was calibrated`;
  by("slider").setAttribute("aria-valuetext", text);
}

// Pictures in, one request each, a few at once.

function add(files) {
  for (const file of files) {
    const card = by("card").content.firstElementChild.cloneNode(true);
    const picture = { file, card, answer: null, turn: 0 };
    const image = card.querySelector("img");
    const address = URL.createObjectURL(file);
    image.addEventListener("load", () => {
      image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
      URL.revokeObjectURL(address);
    });
    image.addEventListener("error", () => {
      image.remove();
      URL.revokeObjectURL(address);
    });
    image.src = address;
    image.alt = file.name;
    card.querySelector(".file").textContent = file.name;
    card.querySelector(".label").textContent = "Waiting";
    card.querySelector("details").hidden = true;
    setBusy(card, true);
    pictures.unshift(picture);
    by("cards").prepend(card);
    waiting.push(picture);
  }
  while (pictures.length > KEPT) {
    forget(pictures.pop());
  }
  work();
}

function forget(picture) {
  picture.turn += 1;
  picture.card.remove();
  const place = waiting.indexOf(picture);
  if (place >= 0) waiting.splice(place, 1);
}

function again() {
  for (const picture of [...pictures].reverse()) {
    picture.turn += 1;
    setBusy(picture.card, true);
    if (!waiting.includes(picture)) waiting.push(picture);
  }
  work();
}

function work() {
  while (running < AT_ONCE && waiting.length) {
    const picture = waiting.shift();
    running += 1;
    classify(picture).finally(() => {
      running -= 1;
      work();
    });
  }
  showStatus();
}

async function classify(picture) {
  const turn = picture.turn;
  let answer;
  try {
    answer = await ask(picture.file);
  } catch (error) {
    answer = { error: error.message };
  }
  // It was asked anew meanwhile, or is gone.
  if (turn !== picture.turn) return;
  picture.answer = answer;
  show(picture);
  showSaving();
}

async function ask(file) {
  const chosen = budget();
  const address = chosen ? `classify?lam=${chosen.lam}` : "classify";
  for (let tries = 1; ; tries += 1) {
    let response;
    try {
      response = await fetch(address, {
        method: "POST",
        headers: { "Content-Type": "application/octet-stream" },
        body: file,
      });
    } catch {
      throw new Error("The server cannot be reached, or the file cannot be read.");
    }
    if (response.status === 503 && tries < TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      continue;
    }
    const content = await response.json();
    if (content.answers) return content.answers[0];
    throw new Error(content.error);
  }
}

// Answers out.

function show({ card, file, answer }) {
  const find = (name) => card.querySelector(name);
  setBusy(card, false);
  card.classList.toggle("failed", "error" in answer);
  card.classList.toggle("twice", answer.looks === 2);
  find(".confidence").textContent = "";
  if ("error" in answer) {
    find(".label").textContent = `Not classified: ${answer.error}`;
    return;
  }
  find(".label").textContent = answer.label;
  find(".confidence").textContent = percent(answer.confidence);
  fill(find(".sure"), answer.confidence);
  find("img")?.setAttribute("alt", `${file.name}, classified as ${answer.label}`);
  find(".looks").replaceChildren(...looks(answer));
  fill(find(".cost .fill"), answer.share);
  find(".price").textContent = `${gmacs(answer.gmacs)}, ${percent(answer.share)} of the largest`;
  const others = answer.top.slice(1).map((other) => {
    const line = element("li", "");
    line.append(element("span", other.label, "label"));
    line.append(element("span", percent(other.confidence, 1), "quiet"));
    return line;
  });
  find(".top").replaceChildren(...others);
  find("details").hidden = !others.length;
}

function looks(answer) {
  const line = (text, then, className = "") => {
    const made = element("li", "", className);
    const words = element("span", text);
    if (then) words.append(" ", element("span", then, "then"));
    made.append(words);
    return made;
  };
  const first = answer.first_look;
  if (!first) {
    const chosen = model.resolutions.length > 1;
    const least = answer.resolution === model.resolutions.at(-1);
    const text = `${chosen ? "The predictor chose" : "Classified at"} ${answer.resolution} px`;
    return [line(text, chosen && least ? "was enough" : "", least ? "enough" : "")];
  }
  const said = `First look, ${first.resolution} px: ${first.label}, ${percent(first.confidence)}`;
  if (answer.looks === 1) return [line(said, "was enough", "enough")];
  return [line(said, ""), line(`Second look, ${answer.resolution} px`, "was needed", "second")];
}

function showSaving() {
  const answers = pictures.map((picture) => picture.answer).filter((a) => a && !("error" in a));
  by("saving").hidden = !answers.length;
  if (!answers.length) return;
  const spent = answers.reduce((sum, answer) => sum + answer.gmacs, 0);
  const largest = answers.length * model.largest_gmacs;
  const saved = 1 - spent / largest;
  by("saved").textContent = saved >= 0 ? `${percent(saved)} saved` : `${percent(-saved)} more`;
  by("saved-of").textContent =
    `${saved >= 0 ? "of" : "than"} the multiply-adds of the largest size, on ` +
    counted(answers.length, "picture");
  by("largest-name").textContent = `All at ${model.resolutions[0]} px`;
  const most = Math.max(spent, largest);
  fill(by("largest-bar"), largest / most);
  fill(by("spent-bar"), spent / most);
  by("largest-cost").textContent = gmacs(largest);
  by("spent-cost").textContent = gmacs(spent);
  const twice = answers.filter((answer) => answer.looks === 2).length;
  by("shares").textContent = model.first_look
    ? `One look was enough for ${answers.length - twice}, ${twice} needed a second`
    : model.resolutions
        .map((size) => `${answers.filter((a) => a.resolution === size).length} at ${size} px`)
        .join(", ");
}

function showStatus() {
  const left = waiting.length + running;
  const done = pictures.filter(({ answer }) => answer && !("error" in answer)).length;
  const failed = pictures.length - done;
  const ended = [`${counted(done, "picture")} done`];
  if (failed) ended.push(`${failed} not classified`);
  if (left) by("status").textContent = `${counted(left, "picture")} to go`;
  else by("status").textContent = pictures.length ? ended.join(", ") : "";
}

function clear() {
  while (pictures.length) forget(pictures.pop());
  showSaving();
  showStatus();
  by("files").focus();
}

for (const id of ["files", "camera"]) {
  by(id).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
}
by("clear").addEventListener("click", clear);
by("camera-button").hidden = !matchMedia("(pointer: coarse)").matches;
document.addEventListener("paste", (event) => add(event.clipboardData.files));
let inside = 0;
document.addEventListener("dragenter", (event) => {
  inside += 1;
  document.body.classList.toggle("dropping", event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", () => {
  inside -= 1;
  if (!inside) document.body.classList.remove("dropping");
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dropping");
  add(event.dataTransfer.files);
});
start().catch(() => {
  by("about").textContent = "The server cannot be reached: load the page again.";
});
