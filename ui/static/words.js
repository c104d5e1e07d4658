// Numbers as people read them, as ui/words.py does.
export function size(count) {
  for (const [scale, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
    if (Math.abs(count) >= scale) return `${(count / scale).toFixed(Math.max(0, 3 - `${Math.trunc(Math.abs(count) / scale)}`.length))} ${unit}`;
  return `${Math.round(count)} B`;
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "—";
  if (value === 0) return "0";
  const power = Math.floor(Math.log10(Math.abs(value)));
  const text = power < -7 || power > 12 ? value.toExponential(digits - 1) : value.toFixed(Math.max(0, digits - 1 - power));
  return text.replace("-", "−");
}

export function percent(ratio) {
  const change = Math.round(100 * (ratio - 1));
  return change === 0 ? "0 %" : `${change > 0 ? "+" : "−"}${Math.abs(change)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "—";
  if (seconds < 59.5) return `${seconds < 9.95 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

const STEPS = [2, 3, 4, 5, 6, 8];

export function bitsClass(bits) {
  const step = STEPS.find((each) => bits <= each);
  return bits === null || bits === undefined ? "b0" : step ? `b${step}` : "b16";
}

export function label(format) {
  return format.replace(/^int/, "").replace(/[-_]/g, "·");
}

export function place(unit) {
  const match = unit.match(/^(?:model\.)?layers\.(\d+)(?:\.(.+))?$/);
  return match ? { block: +match[1], module: match[2] || "block" } : { block: null, module: unit };
}
