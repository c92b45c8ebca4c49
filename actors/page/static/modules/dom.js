/** Building elements without HTML text: strings become text nodes, and a link leads inside this page only. */

/**
 * @typedef {Node | string | number | null | undefined | false | Child[]} Child
 */

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "selected"]);

/**
 * An element. Attributes by name; `class`, `on: {event: listener}`, `data: {}`, `css: {property: value}` have their own sense.
 * @param {string} tag
 * @param {Record<string, any> | null} [attributes]
 * @param {...Child} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "data") {
      Object.assign(element.dataset, value);
    } else if (name === "css") {
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, String(text));
    } else if (PROPERTIES.has(name)) {
      element[name] = value;
    } else if (name === "href" && !/^[/#](?!\/)/.test(value)) {
      throw new Error(`a link must stay inside the page: ${value}`);
    } else if (name.startsWith("on") || name === "style" || name === "srcdoc") {
      throw new Error(`no ${name} attributes`);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  add(element, children);
  return element;
}

/** An SVG element with attributes. @param {string} tag @param {Record<string, any>} attributes @param {...Child} children */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  add(element, children);
  return element;
}

/** Append children; what is null, undefined or false is left out. @param {Node} parent @param {Child[]} children */
export function add(parent, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(parent, child);
    else if (child instanceof Node) parent.appendChild(child);
    else if (child !== null && child !== undefined && child !== false) parent.appendChild(document.createTextNode(String(child)));
  }
}

/** Replace all that an element holds. @param {Element} element @param {...Child} children */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
}

/** Set the text of an element if it differs, so that nothing is painted for nothing. @param {Element} element @param {string} text */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A unit after its number, smaller and fainter. @param {string} text @param {string} unit */
export function withUnit(text, unit) {
  return [text, unit ? h("span", { class: "unit" }, ` ${unit}`) : null];
}
