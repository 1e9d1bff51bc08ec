/** Lines and points on a logarithmic x axis, with their intervals, a legend, and a title on every point. */

export type Dot = { x: number; y: number; low?: number; high?: number; title: string; open?: boolean; bare?: boolean; name?: string };
export type Line = { label: string; note: string; colour: string; dashed?: boolean; points: Dot[] };
type Scale = (value: number) => number;

const WIDTH = 640, HEIGHT = 380, LEFT = 68, RIGHT = 16, TOP = 12, BOTTOM = 44;

type Props = { lines: Line[]; x: string; y: string; logY?: boolean; base: number; formatX: (v: number) => string; formatY: (v: number) => string };

export function Chart({ lines, x, y, logY, base, formatX, formatY }: Props) {
  const dots = lines.flatMap((line) => line.points);
  if (!dots.length) return <p class="notice">Nothing was measured here.</p>;
  const [x0, x1] = padded(dots.map((dot) => dot.x), true);
  const ys = dots.flatMap((dot) => [dot.y, dot.low ?? dot.y, dot.high ?? dot.y]);
  const [y0, y1] = logY ? padded(ys, true) : [0, 1];
  const across: Scale = (v) => LEFT + ((Math.log(v) - Math.log(x0)) / (Math.log(x1) - Math.log(x0))) * (WIDTH - LEFT - RIGHT);
  const up: Scale = (v) => {
    const part = logY ? (Math.log(v) - Math.log(y0)) / (Math.log(y1) - Math.log(y0)) : (v - y0) / (y1 - y0);
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM);
  };
  const yTicks = logY ? powers(y0, y1, 10) : [0, 0.25, 0.5, 0.75, 1];
  return (
    <figure>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${y} over ${x}`}>
        {yTicks.map((tick) => (
          <g key={tick} class="tick">
            <line x1={LEFT} x2={WIDTH - RIGHT} y1={up(tick)} y2={up(tick)} />
            <text x={LEFT - 8} y={up(tick) + 4} text-anchor="end">{formatY(tick)}</text>
          </g>
        ))}
        {powers(x0, x1, base).map((tick) => (
          <g key={tick} class="tick">
            <line x1={across(tick)} x2={across(tick)} y1={TOP} y2={HEIGHT - BOTTOM} />
            <text x={across(tick)} y={HEIGHT - BOTTOM + 18} text-anchor="middle">{formatX(tick)}</text>
          </g>
        ))}
        <text class="axis" x={(LEFT + WIDTH - RIGHT) / 2} y={HEIGHT - 6} text-anchor="middle">{x}</text>
        <text class="axis" transform={`translate(14 ${(HEIGHT - BOTTOM) / 2}) rotate(-90)`} text-anchor="middle">{y}</text>
        {lines.map((line) => <Drawn key={line.label} line={line} across={across} up={up} band={Boolean(logY)} />)}
      </svg>
      <figcaption class="key">
        {lines.filter((line) => line.label).map((line) => (
          <span key={line.label}>
            <svg viewBox="0 0 22 10" width="22" height="10" aria-hidden="true">
              <line x1="0" x2="22" y1="5" y2="5" stroke={line.colour} stroke-width="2" stroke-dasharray={line.dashed ? "4 3" : undefined} />
            </svg>
            {line.label} {line.note && <span class="note">{line.note}</span>}
          </span>
        ))}
      </figcaption>
    </figure>
  );
}

function Drawn({ line, across, up, band }: { line: Line; across: Scale; up: Scale; band: boolean }) {
  const measured = line.points.filter((dot) => !dot.open);
  const path = (dots: Dot[]) => dots.map((dot, i) => `${i ? "L" : "M"}${across(dot.x)} ${up(dot.y)}`).join("");
  const ranged = measured.filter((dot) => dot.low !== undefined && dot.high !== undefined);
  const edge = [...ranged.map((dot) => [dot.x, dot.high!]), ...ranged.map((dot) => [dot.x, dot.low!]).reverse()];
  return (
    <g style={{ color: line.colour }}>
      {band && ranged.length > 1 && <polygon class="band" points={edge.map(([a, b]) => `${across(a)},${up(b)}`).join(" ")} />}
      {!band && ranged.map((dot) => <line key={dot.x} class="whisker" x1={across(dot.x)} x2={across(dot.x)} y1={up(dot.low!)} y2={up(dot.high!)} />)}
      <path class="line" d={path(measured)} stroke-dasharray={line.dashed ? "5 4" : undefined} />
      {line.points.length > measured.length && <path class="line" d={path([...measured.slice(-1), ...line.points.filter((dot) => dot.open)])} stroke-dasharray="1 4" />}
      {line.points.filter((dot) => !dot.bare).map((dot) => (
        <g key={`${dot.x} ${dot.y}`}>
          <circle cx={across(dot.x)} cy={up(dot.y)} r="4.5" class={dot.open ? "open" : "full"}><title>{dot.title}</title></circle>
          {dot.name && <text class="name" x={across(dot.x) + 8} y={up(dot.y) - 7}>{dot.name}</text>}
        </g>
      ))}
    </g>
  );
}

/** The range of positive numbers with a little room at both ends of a logarithmic axis. */
function padded(values: number[], log: boolean): [number, number] {
  const low = Math.min(...values), high = Math.max(...values);
  const room = log ? Math.max((high / low) ** 0.06, 1.12) : 1;
  return [low / room, high * room];
}

/** Powers of the base inside a range, thinned to eight; between powers of ten, where there are few, also 2 and 5. */
function powers(low: number, high: number, base: number): number[] {
  let found: number[] = [];
  for (let e = Math.ceil(Math.log(low) / Math.log(base) - 1e-9); base ** e <= high * (1 + 1e-9); e++) found.push(base ** e);
  if (base === 10 && found.length < 3)
    found = [-12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6].flatMap((e) => [1, 2, 5].map((m) => m * 10 ** e)).filter((v) => v >= low && v <= high);
  const step = Math.ceil(found.length / 8);
  return found.filter((_, i) => i % step === 0);
}
