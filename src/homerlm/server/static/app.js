// The page: documents, a conversation about the ticked ones, and what each answer was read from.

import { Api, ApiError } from "./api.js";
import { Beside } from "./beside.js";
import { Conversations } from "./conversations.js";
import { byId, element } from "./elements.js";

const page = byId();
const api = new Api();
const beside = new Beside(page);
const conversations = new Conversations(localStorage);
const SOURCES = 12; // buttons below an answer
let model = "";
let files = [];
let ticked = new Set();
let now = null; // the conversation
let loaded = null; // once the model and the files are listed
let stopping = null; // of the answer that is being written

start();

async function start() {
  api.key = sessionStorage.getItem("homerlm.key") ?? "";
  page.key.value = api.key;
  page.key.addEventListener("change", () => {
    sessionStorage.setItem("homerlm.key", (api.key = page.key.value.trim()));
    loaded = attempt(load);
  });
  page.files.addEventListener("change", () => {
    add([...page.files.files]);
    page.files.value = "";
  });
  listenForDrops();
  page["add-pasted"].addEventListener("click", paste);
  page.new.addEventListener("click", () => open(null));
  page.ask.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  page.question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      page.ask.requestSubmit();
    }
  });
  page.stop.addEventListener("click", stop);
  document.addEventListener("keydown", (event) => event.key === "Escape" && (stopping ? stop() : beside.hide()));
  open(conversations.all[0] ?? null);
  await (loaded = attempt(load));
}

async function load() {
  model = await api.model();
  page.model.textContent = model;
  files = await api.files();
  for (const id of now?.files ?? []) ticked.add(id);
  listFiles();
}

// Do what may fail, and say what went wrong where it can be read.
async function attempt(work) {
  page.trouble.hidden = true;
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    page["key-row"].hidden = !(error instanceof ApiError && error.status === 401);
    page.trouble.textContent = error.message;
    page.trouble.hidden = false;
    return undefined;
  }
}

function listenForDrops() {
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      page.drop.classList.toggle("over", name === "dragover");
      if (name === "drop") add([...event.dataTransfer.files]);
    });
  }
}

async function add(given) {
  await loaded; // a list that comes later would lack the file, or have it twice
  for (const file of given) {
    await attempt(async () => {
      const made = await api.upload(file);
      files.push(made);
      ticked.add(made.id);
      listFiles();
    });
  }
}

function paste() {
  const text = page.pasted.value;
  if (!text.trim()) return;
  const name = `${text.trim().split(/\s+/).slice(0, 5).join(" ").replace(/[\\/]/g, " ").slice(0, 40)}.txt`;
  add([new File([text], name, { type: "text/plain" })]);
  page.pasted.value = "";
}

function listFiles() {
  ticked = new Set(files.map((file) => file.id).filter((id) => ticked.has(id)));
  page["no-documents"].hidden = files.length > 0;
  page.documents.replaceChildren(...files.map(listed));
}

function listed(file) {
  const box = element("input", { type: "checkbox", checked: ticked.has(file.id) });
  box.addEventListener("change", () => (box.checked ? ticked.add(file.id) : ticked.delete(file.id)));
  const label = element("label", { title: file.filename }, box, ` ${file.filename}`);
  const remove = element("button", { type: "button", className: "small", ariaLabel: `Delete ${file.filename}` }, "×");
  remove.addEventListener("click", () =>
    attempt(async () => {
      await api.remove(file.id);
      files = files.filter((one) => one.id !== file.id);
      listFiles();
    }),
  );
  return element("li", {}, label, remove);
}

function listConversations() {
  page.conversations.replaceChildren(
    ...conversations.all.map((one) => {
      const button = element("button", { type: "button", className: "open", title: one.title }, one.title || "…");
      if (one.id === now?.id) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => open(one));
      const remove = element("button", { type: "button", className: "small", ariaLabel: `Delete ${one.title}` }, "×");
      remove.addEventListener("click", () => {
        conversations.remove(one.id);
        if (now?.id === one.id) open(null);
        listConversations();
      });
      return element("li", {}, button, remove);
    }),
  );
}

function open(conversation) {
  stop();
  now = conversation;
  if (now) ticked = new Set(now.files);
  page.turns.replaceChildren(...(now?.turns ?? []).map((turn) => turnOf(turn)));
  listFiles();
  listConversations();
  page.question.focus();
}

function turnOf(turn) {
  const ariaLabel = turn.role === "user" ? "Your question" : "Answer";
  const made = element("article", { className: `turn ${turn.role}`, ariaLabel }, turn.content);
  if (turn.price) made.append(element("span", { className: "price" }, turn.price));
  if (turn.sources?.length) made.append(sourcesOf(turn));
  return made;
}

function sourcesOf(turn) {
  const buttons = turn.sources.slice(0, SOURCES).map((source) => {
    const words = source.text.split(/\s+/).slice(0, 8).join(" ");
    const button = element("button", { type: "button", title: source.document }, words);
    button.addEventListener("click", () => attempt(() => showSource(turn, source)));
    return button;
  });
  const caption = element("span", { className: "price" }, "Read from");
  return element("div", { className: "sources", role: "group", ariaLabel: "Passages the answer was read from" }, caption, ...buttons);
}

async function showSource(turn, source) {
  const kept = await api.kept(turn.id);
  const found = kept.documents.find((one) => one.name === source.document) ?? kept.documents[0];
  const number = found.passages.findIndex((one) => one.start === source.start);
  beside.show(found, Math.max(number, 0));
}

async function ask() {
  const question = page.question.value.trim();
  if (!question || stopping) return;
  now ??= conversations.begin([]);
  now.files = [...ticked];
  now.title ||= question.slice(0, 60);
  const asked = { role: "user", content: question };
  const answer = { role: "assistant", content: "" };
  const messages = messagesOf(now, asked);
  now.turns.push(asked, answer);
  page.question.value = "";
  const put = turnOf(asked), shown = turnOf(answer);
  page.turns.append(put, shown);
  shown.scrollIntoView({ block: "end" });
  busy(new AbortController());
  const conversation = now;
  await attempt(() => write(messages, answer, shown).finally(() => answer.content && cite(answer, conversation)));
  busy(null);
  if (answer.content || answer.price) shown.replaceWith(turnOf(answer));
  else takeBack(conversation, put, shown);
  conversations.save();
  listConversations();
}

// A question without an answer, which goes back to where it was written.
function takeBack(conversation, put, shown) {
  const { content } = conversation.turns.splice(-2)[0];
  put.remove();
  shown.remove();
  if (now !== conversation) return;
  page.question.value ||= content;
  if (!conversation.turns.length) now = null;
}

// Every turn as text; the newest question has the ticked documents before it.
function messagesOf(conversation, asked) {
  const before = conversation.turns.map(({ role, content }) => ({ role, content }));
  const named = conversation.files.map((id) => ({ type: "file", file: { file_id: id } }));
  return [...before, { role: "user", content: [...named, { type: "text", text: asked.content }] }];
}

async function write(messages, answer, shown) {
  if (!model) await load();
  for await (const chunk of api.chat(model, messages, stopping.signal)) {
    answer.id = chunk.id;
    if (chunk.prompt_progress) reading(chunk.prompt_progress);
    const text = chunk.choices[0]?.delta?.content;
    if (text) {
      page.reading.hidden = true;
      answer.content += text;
      shown.textContent = answer.content;
      shown.scrollIntoView({ block: "end" });
    }
    if (chunk.usage) answer.price = priceOf(chunk.usage);
  }
}

async function cite(answer, conversation) {
  if (!conversation.files.length) return;
  const kept = await api.kept(answer.id);
  answer.sources = kept.documents.flatMap((one) =>
    one.passages.map(({ start, end, text }) => ({ document: one.name, start, end, text: text.slice(0, 120) })),
  );
}

function reading({ total, processed, cache, time_ms: ms }) {
  page.reading.hidden = false;
  page.bar.value = total ? processed / total : 0;
  const rate = ms ? (processed - cache) / (ms / 1000) : 0;
  const left = rate > 0 ? Math.ceil((total - processed) / rate) : null;
  const whole = `${processed.toLocaleString("en")} of ${total.toLocaleString("en")} tokens read`;
  page["reading-says"].textContent = rate > 0 ? `${whole}, ${Math.round(rate).toLocaleString("en")} a second, ${left} s left` : whole;
}

function priceOf(usage) {
  const { read, kept, seconds } = usage.homer;
  const known = usage.prompt_tokens_details.cached_tokens;
  const parts = [`${read.toLocaleString("en")} tokens read`, `${kept.toLocaleString("en")} kept`, `${seconds.toFixed(1)} s`];
  return known ? `${known.toLocaleString("en")} known from before, ${parts.join(", ")}` : parts.join(", ");
}

function busy(controller) {
  stopping = controller;
  page.send.hidden = Boolean(controller);
  page.stop.hidden = !controller;
  page.turns.ariaBusy = String(Boolean(controller)); // an answer is read out whole, not piece by piece
  page.reading.hidden = true;
}

function stop() {
  stopping?.abort();
}
