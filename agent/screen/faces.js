/* The faces, from the best: drawn here, since a device has no other pictures. */

const SHAPES = { 3: [0, 2, 4], 4: [0, 1, 3, 4], 5: [0, 1, 2, 3, 4] };
const COLOURS = ["#1d8f4e", "#7fb23a", "#e9b92a", "#e8853a", "#d4453b"];
const MOUTHS = [
  "M28 58 Q50 88 72 58 Z",
  "M30 62 Q50 78 70 62",
  "M30 66 L70 66",
  "M30 70 Q50 56 70 70",
  "M30 76 Q50 50 70 76",
];

export function face(answer, count) {
  const shape = SHAPES[count][answer];
  const svg = node("svg", { viewBox: "0 0 100 100", "aria-hidden": "true", focusable: "false" });
  svg.append(
    node("circle", { cx: 50, cy: 50, r: 46, fill: COLOURS[shape], stroke: "#14202b", "stroke-width": 4 }),
    node("circle", { cx: 35, cy: 40, r: 6, fill: "#14202b" }),
    node("circle", { cx: 65, cy: 40, r: 6, fill: "#14202b" }),
    node("path", {
      d: MOUTHS[shape],
      fill: shape === 0 ? "#14202b" : "none",
      stroke: "#14202b",
      "stroke-width": 6,
      "stroke-linecap": "round",
      "stroke-linejoin": "round",
    }),
  );
  return svg;
}

export const name = (answer, count) => `face${SHAPES[count][answer]}`;

function node(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
