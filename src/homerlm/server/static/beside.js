// The document beside the conversation, with the passages that an answer was read from.

import { element } from "./elements.js";

export class Beside {
  constructor(page) {
    this.page = page;
    this.marks = [];
    this.at = 0;
    page.previous.addEventListener("click", () => this.go(this.at - 1));
    page.next.addEventListener("click", () => this.go(this.at + 1));
    page.close.addEventListener("click", () => this.hide());
    this.narrow = matchMedia("(max-width: 50rem)");
    this.narrow.addEventListener("change", () => this.cover());
  }

  // document: {name, text, passages: [{start, end}]}, in characters as the server counts them (code points).
  show(document, number) {
    const { page } = this;
    this.opener = window.document.activeElement;
    page["beside-title"].textContent = document.name;
    const characters = [...document.text];
    const parts = [];
    this.marks = [];
    let at = 0;
    for (const { start, end } of document.passages) {
      parts.push(characters.slice(at, start).join(""));
      const mark = element("mark", { tabIndex: -1 }, characters.slice(start, end).join(""));
      this.marks.push(mark);
      parts.push(mark);
      at = end;
    }
    page.text.replaceChildren(...parts, characters.slice(at).join(""));
    page.beside.hidden = false;
    window.document.body.classList.add("split");
    this.cover();
    this.go(number);
  }

  go(number) {
    if (!this.marks.length) return;
    this.marks[this.at]?.classList.remove("current");
    this.at = (number + this.marks.length) % this.marks.length;
    const mark = this.marks[this.at];
    mark.classList.add("current");
    mark.scrollIntoView({ block: "center" });
    mark.focus({ preventScroll: true });
  }

  hide() {
    if (this.page.beside.hidden) return;
    this.page.beside.hidden = true;
    window.document.body.classList.remove("split");
    this.cover();
    (this.opener?.isConnected ? this.opener : this.page.question).focus();
  }

  // On a narrow screen the document lies over everything else, which cannot be reached meanwhile.
  cover() {
    const covered = !this.page.beside.hidden && this.narrow.matches;
    for (const one of window.document.querySelectorAll("header, nav, main")) one.inert = covered;
  }
}
