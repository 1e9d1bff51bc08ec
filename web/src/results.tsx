/** The page of a comparison: cost over length, quality over cost, and every row in a table that sorts. */
import { signal } from "@preact/signals";
import { schemeTableau10 } from "d3-scale-chromatic";
import { render } from "preact";
import { Chart, type Line } from "./views/Chart";
import { Rows } from "./views/Rows";
import "./style.css";
import "./results.css";

type Row = Record<string, string | number | boolean | null>;
type Point = { task: string; mechanism: string; score: number; score_low: number; score_high: number; cost: number; seeds: number };
type Growth = { mechanism: string; phase: string; level: string; said: string };
type Results = { cost: Row[]; predicted: Row[]; quality: Row[]; points: Point[]; growth: Growth[]; best: Record<string, string[]>; origin: string };

const results: Results = JSON.parse(document.getElementById("results")!.textContent!);
const NAMES: Record<string, string> = { prefill: "one pass", train: "forward and backward", decode: "one more token" };
const mechanisms = [...new Set([...results.cost, ...results.quality].map((row) => String(row.mechanism)))];
const colour = (mechanism: string) => schemeTableau10[mechanisms.indexOf(mechanism) % 10];
const panels = [...new Set(results.cost.map((row) => `${row.phase} · ${row.level}`))];
const tasks = [...new Set(results.points.map((point) => point.task))];
const panel = signal(panels[0] ?? "");
const task = signal(tasks[0] ?? "");
const kind = signal(results.cost.length ? "cost" : "quality");
const dark = matchMedia("(prefers-color-scheme: dark)");
document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
dark.addEventListener("change", () => (document.documentElement.dataset.theme = dark.matches ? "dark" : "light"));

const inPanel = (row: Row) => `${row.phase} · ${row.level}` === panel.value;

function costLines(): Line[] {
  const rows = results.cost.filter(inPanel);
  const lines: Line[] = mechanisms.flatMap((mechanism) => {
    const mine = rows.filter((row) => row.mechanism === mechanism).sort((a, b) => Number(a.length) - Number(b.length));
    if (!mine.length) return [];
    const grown = results.growth.find((g) => g.mechanism === mechanism && `${g.phase} · ${g.level}` === panel.value);
    const note = grown?.said ?? "";
    const points = mine.map((row) => {
      const baseline = Number(row.baseline_seconds);
      return {
        x: Number(row.length), y: Number(row.seconds), low: baseline * Number(row.ratio_low), high: baseline * Number(row.ratio_high),
        title: `${mechanism}\n${Number(row.length).toLocaleString("en")} tokens: ${seconds(Number(row.seconds))}\n${Number(row.ratio).toFixed(2)} × fused (${Number(row.ratio_low).toFixed(2)}–${Number(row.ratio_high).toFixed(2)})`,
      };
    });
    const open = results.predicted.filter((row) => inPanel(row) && row.mechanism === mechanism).map((row) => ({
      x: Number(row.length), y: Number(row.seconds), open: true,
      title: `${mechanism}\n${Number(row.length).toLocaleString("en")} tokens: ${seconds(Number(row.seconds))}, predicted`,
    }));
    return [{ label: mechanism, note, colour: colour(mechanism), points: [...points, ...open] }];
  });
  const lengths = [...new Set(rows.map((row) => Number(row.length)))].sort((a, b) => a - b);
  const fused = lengths.map((n) => {
    const found = rows.filter((row) => row.length === n).map((row) => Number(row.baseline_seconds)).sort((a, b) => a - b);
    const y = found[Math.floor(found.length / 2)];
    return { x: n, y, title: `fused attention (PyTorch)\n${n.toLocaleString("en")} tokens: ${seconds(y)}` };
  });
  return [...lines, { label: "fused attention (PyTorch)", note: "the baseline", colour: "var(--ink)", dashed: true, points: fused }];
}

function qualityLines(): Line[] {
  const points = results.points.filter((point) => point.task === task.value).sort((a, b) => a.cost - b.cost);
  const best = new Set(results.best[task.value] ?? []);
  const front = points.filter((point) => best.has(point.mechanism)).map((point) => ({ x: point.cost, y: point.score, bare: true, title: "" }));
  return [
    { label: "", note: "", colour: "var(--muted)", dashed: true, points: front },
    ...points.map((point) => ({
      label: point.mechanism, note: best.has(point.mechanism) ? "none cheaper is as good" : "", colour: colour(point.mechanism),
      points: [{
        x: point.cost, y: point.score, low: point.score_low, high: point.score_high, name: point.mechanism,
        title: `${point.mechanism}\n${(100 * point.score).toFixed(1)}% (${(100 * point.score_low).toFixed(1)}–${(100 * point.score_high).toFixed(1)}%, ${point.seeds} seed${point.seeds > 1 ? "s" : ""})\n${point.cost.toFixed(1)} µs per training token`,
      }],
    })),
  ];
}

function seconds(value: number): string {
  const [unit, name] = value >= 1 ? [1, "s"] : value >= 1e-3 ? [1e-3, "ms"] : [1e-6, "µs"];
  return `${(value / unit).toPrecision(3)} ${name}`;
}

function Choice({ of, at, label }: { of: string[]; at: { value: string }; label: string }) {
  return (
    <div class="segments" role="group" aria-label={label}>
      <span>{label}</span>
      {of.map((name) => (
        <button key={name} aria-pressed={at.value === name} onClick={() => (at.value = name)}>{name}</button>
      ))}
    </div>
  );
}

function Page() {
  return (
    <>
      <header class="top">
        <h1><span class="brand">regard</span>comparison of {mechanisms.length} mechanism{mechanisms.length === 1 ? "" : "s"}</h1>
      </header>
      <main>
        <div class="charts">
          {panels.length > 0 && (
            <section class="chart">
              <h2>Time over length: {NAMES[panel.value.split(" · ")[0]]}</h2>
              <div class="bar"><Choice of={panels} at={panel} label="phase" /></div>
              <Chart lines={costLines()} x="tokens" y="seconds" logY formatY={seconds} formatX={(n) => tokens(n)} base={2} />
              <p class="small">Bands: quartiles of the interleaved rounds. Open points: predicted, not measured.</p>
            </section>
          )}
          {tasks.length > 0 && (
            <section class="chart">
              <h2>Quality over cost</h2>
              <div class="bar"><Choice of={tasks} at={task} label="task" /></div>
              <Chart lines={qualityLines()} x="microseconds per training token" y="accuracy" formatY={(v) => `${Math.round(100 * v)}%`} formatX={(v) => String(Number(v.toPrecision(2)))} base={10} />
              <p class="small">Bars: 95% intervals. The dashed line joins what no cheaper mechanism equals; up and left is better.</p>
            </section>
          )}
        </div>
        <section>
          <div class="bar">
            <h2>All rows</h2>
            {results.cost.length > 0 && results.quality.length > 0 && <Choice of={["cost", "quality"]} at={kind} label="show" />}
          </div>
          <Rows key={kind.value} rows={kind.value === "cost" ? [...results.cost, ...results.predicted] : results.quality} />
        </section>
      </main>
      <footer>{results.origin}</footer>
    </>
  );
}

function tokens(n: number): string {
  return n >= 1 << 20 ? `${n / (1 << 20)}m` : n >= 1 << 10 ? `${n / (1 << 10)}k` : String(n);
}

render(<Page />, document.getElementById("page")!);
