/* Shows messages in the part of ICU's MessageFormat that protocol/message.py lets through. */

export function format(text, values, language) {
  return parts(text, { at: 0 }, values, language, null);
}

function parts(text, place, values, language, number) {
  let out = "";
  while (place.at < text.length && text[place.at] !== "}") {
    const char = text[place.at];
    if (char === "'") {
      out += quoted(text, place);
    } else if (char === "{") {
      place.at += 1;
      out += argument(text, place, values, language, number);
    } else {
      out += char === "#" && number !== null ? number.toLocaleString(language) : char;
      place.at += 1;
    }
  }
  return out;
}

function quoted(text, place) {
  const following = text[place.at + 1];
  if (following === "'") {
    place.at += 2;
    return "'";
  }
  if (following === undefined || !"{}#".includes(following)) {
    place.at += 1;
    return "'";
  }
  let end = text.indexOf("'", place.at + 1);
  if (end < 0) end = text.length;
  const found = text.slice(place.at + 1, end);
  place.at = end + 1;
  return found;
}

function take(text, place, pattern) {
  pattern.lastIndex = place.at;
  const found = pattern.exec(text);
  if (found === null) throw new Error(`message: ${text}`);
  place.at = pattern.lastIndex;
  return found[1];
}

function argument(text, place, values, language, number) {
  const value = values[take(text, place, /\s*([a-z][a-z0-9_]*)\s*/y)];
  if (text[place.at] === "}") {
    place.at += 1;
    return String(value ?? "");
  }
  const way = take(text, place, /,\s*(plural|select)\s*,/y);
  const cases = new Map();
  while (!/^\s*\}/.test(text.slice(place.at))) {
    const label = take(text, place, /\s*(=\d+|[a-z][a-z0-9_]*)\s*\{/y);
    cases.set(label, parts(text, place, values, language, way === "plural" ? value : number));
    place.at += 1;
  }
  take(text, place, /\s*(\})/y);
  const wanted = way === "select" ? String(value) : new Intl.PluralRules(language).select(value);
  if (way === "plural" && cases.has(`=${value}`)) return cases.get(`=${value}`);
  return cases.get(wanted) ?? cases.get("other");
}
