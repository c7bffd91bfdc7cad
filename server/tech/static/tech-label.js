// A device's label, by the rules of protocol/label.py: what a QR code holds, or a person types.

export const ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
export const LENGTH = 17; // the secret's 16 characters, and the check character
const PREFIX = "VSL1.";

export const plainSerial = (text) => text.trim().toUpperCase();
export const plainCode = (text) => text.replace(/[\s-]/g, "").toUpperCase();
export const serialIsGood = (serial) => /^[A-Z0-9][A-Z0-9-]{2,30}$/.test(serial);

const timesX = (value) => ((value << 1) & 32 ? (value << 1) ^ 0b100101 : value << 1);

// Horner's rule over GF(32), x^5 + x^2 + 1: tells any one wrong character, and any two swapped.
export function check(serial, secret) {
  const symbols = [...new TextEncoder().encode(serial)].flatMap((byte) => [byte >> 5, byte & 31]);
  for (const character of secret) symbols.push(ALPHABET.indexOf(character));
  return ALPHABET[timesX(symbols.reduce((sum, symbol) => timesX(sum) ^ symbol, 0))];
}

// What is wrong with what was typed so far: [key of a text, its values], or the label.
export function typed(serialText, codeText) {
  const serial = plainSerial(serialText), code = plainCode(codeText);
  const wrong = [...code].find((character) => !ALPHABET.includes(character));
  if (wrong) return { say: ["bad_letter", { letter: wrong }], bad: true };
  if (code.length > LENGTH) return { say: ["too_long"], bad: true };
  if (serial && !serialIsGood(serial)) return { say: ["bad_serial"], bad: serial.length >= 3 };
  if (code.length < LENGTH) return { say: ["so_far", { n: code.length }] };
  if (!serial) return { say: ["bad_serial"] };
  const secret = code.slice(0, -1);
  if (check(serial, secret) !== code.at(-1)) return { say: ["mistyped"], bad: true };
  return { say: ["right"], label: { serial, secret } };
}

// The label that a QR code's text holds; null if it is none of ours.
export function scanned(text) {
  const upper = text.trim().toUpperCase();
  if (!upper.startsWith(PREFIX)) return null;
  const [serial, code = ""] = upper.slice(PREFIX.length).split(".");
  return typed(serial, code).label ?? null;
}

export const text = ({ serial, secret }) => `vsl1.${serial}.${secret}${check(serial, secret)}`;

const bytes = (string) => new TextEncoder().encode(string);

// The proof that this phone has read the label: so no secret need be kept until there is signal.
export async function bindProof({ serial, secret }, { voucher, spot, atMs }) {
  const digest = await crypto.subtle.digest("SHA-256", bytes(secret));
  const key = await crypto.subtle.importKey("raw", digest, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const lines = ["vsb1", voucher, serial, spot, String(atMs)].join("\n");
  const mac = await crypto.subtle.sign("HMAC", key, bytes(lines));
  return [...new Uint8Array(mac)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
