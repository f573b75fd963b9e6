// Conversations of this browser, newest first. Nothing of them is kept on the server.

const KEY = "homerlm.conversations";
const MOST = 50;

export class Conversations {
  constructor(storage) {
    this.storage = storage;
    try {
      this.all = JSON.parse(storage.getItem(KEY)) ?? [];
    } catch {
      this.all = [];
    }
  }

  // {id, title, files: ids, turns: [{role, content, id, price, sources}]}
  begin(files) {
    const made = { id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()), title: "", files, turns: [] };
    this.all.unshift(made);
    return made;
  }

  find(id) {
    return this.all.find((one) => one.id === id);
  }

  remove(id) {
    this.all = this.all.filter((one) => one.id !== id);
    this.save();
  }

  save() {
    this.all = this.all.filter((one) => one.turns.length).slice(0, MOST);
    try {
      this.storage.setItem(KEY, JSON.stringify(this.all));
    } catch {
      // Full or forbidden: this page goes on, the next one begins without them.
    }
  }
}
