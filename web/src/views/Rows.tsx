/** Every row and column of the results, filtered by words and sorted by the column that is clicked. */
import { useState } from "preact/hooks";

type Value = string | number | boolean | null;
type Row = Record<string, Value>;

export function Rows({ rows }: { rows: Row[] }) {
  const [sorted, sort] = useState<{ column: string; down: boolean } | null>(null);
  const [words, filter] = useState("");
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => rows.some((row) => row[name] !== null && row[name] !== undefined));
  const asked = words.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = rows.filter((row) => asked.every((word) => Object.values(row).some((value) => String(value ?? "").toLowerCase().includes(word))));
  if (sorted) shown.sort((a, b) => compare(a[sorted.column] ?? null, b[sorted.column] ?? null) * (sorted.down ? -1 : 1));
  const click = (column: string) => sort(sorted?.column === column ? { column, down: !sorted.down } : { column, down: false });
  return (
    <>
      <div class="bar">
        <input type="search" placeholder="filter, such as: train 4096" value={words} onInput={(event) => filter(event.currentTarget.value)} aria-label="filter rows" />
        <span class="small">{shown.length} of {rows.length} rows; click a column to sort</span>
      </div>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              {columns.map((name) => (
                <th key={name} aria-sort={sorted?.column === name ? (sorted.down ? "descending" : "ascending") : undefined}>
                  <button onClick={() => click(name)}>{name.replaceAll("_", " ")}{sorted?.column === name ? (sorted.down ? " ▾" : " ▴") : ""}</button>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {shown.map((row, i) => (
              <tr key={i} class={row.predicted ? "predicted" : undefined}>
                {columns.map((name) => <td key={name} class={typeof row[name] === "number" ? "value" : undefined}>{written(row[name] ?? null)}</td>)}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function compare(a: Value, b: Value): number {
  if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

function written(value: Value): string {
  if (value === null) return "";
  if (typeof value !== "number") return typeof value === "boolean" ? (value ? "yes" : "no") : value;
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}
