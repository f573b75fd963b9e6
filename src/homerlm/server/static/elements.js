// Elements made with their properties and children. Text enters as text, never as markup.

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function byId() {
  return Object.fromEntries([...document.querySelectorAll("[id]")].map((one) => [one.id, one]));
}
