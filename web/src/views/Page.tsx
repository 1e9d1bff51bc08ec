/** The frame around the views: what is looked at, the way between views, keys that work everywhere. */
import { useEffect } from "preact/hooks";
import { header, layers, n, otherTokens, record, served, texts } from "../data";
import { leftOut } from "../left";
import { missing, save, type Format } from "../save";
import { help, mode, OPEN, stepHead, theme, view, type View } from "../state";
import { alone, count } from "../words";
import { FlowView } from "./FlowView";
import { Heads } from "./Heads";
import { Help } from "./Help";
import { MapView } from "./MapView";
import { TextView } from "./TextView";

/** To the field for words; the heads have none, so that the text is opened. */
function seek(): void {
  if (view.value === "heads" || view.value === "flow") view.value = "text";
  requestAnimationFrame(() => document.querySelector<HTMLElement>(".find input")?.focus());
}

const divided = layers.flatMap(({ index, shares }) => (shares ? [index] : [])).join(", ");

const NAMES: Record<View, string> = { heads: "Heads", map: "Map", text: "Text", flow: "Flow" };

export function Page() {
  useEffect(() => {
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  const heads = layers.reduce((sum, layer) => sum + layer.heads, 0);
  const size = `${(record.model.parameters / 1e6).toFixed(1)} M parameters`;
  return (
    <>
      <header class="top">
        <h1>
          <span class="brand">regard</span> {record.model.name}
        </h1>
        <p class="facts" title={`${record.model.architecture}; ${record.command}`}>
          {size} · {layers.length} layers, {heads} heads · {count(record.tokens)} tokens
          {record.prompt_tokens < record.tokens && `, ${count(record.tokens - record.prompt_tokens)} of them generated`}
          {texts[1] && `, from ${count(texts[1].ids.length)} that the encoder read`}
        </p>
        <nav aria-label="views">
          {OPEN.map((name) => (
            <button key={name} aria-current={view.value === name ? "page" : undefined} onClick={() => (view.value = name)}>
              {NAMES[name]}
            </button>
          ))}
        </nav>
        <div class="tools">
          <Save />
          <button class="quiet" onClick={() => (theme.value = theme.value === "dark" ? "light" : "dark")} aria-label={`${theme.value === "dark" ? "light" : "dark"} colours`} title="dark or light (d)">
            {theme.value === "dark" ? "☀" : "☾"}
          </button>
          <button class="quiet" onClick={() => (help.value = true)} aria-label="help: keys and meanings" title="keys and meanings (?)">
            ?
          </button>
        </div>
      </header>
      {header.beside && (
        <p class="notice" role="note">
          {!otherTokens.length && header.beside.record.command && header.beside.record.command === record.command
            ? "These are the maps after the edits; beside them are those before, of the same tokens."
            : `Beside it: ${header.beside.record.command || header.beside.record.model.name} (${otherTokens.length ? otherText() : "of the same tokens"}).`}
        </p>
      )}
      {record.analyses?.kept && (
        <p class="notice" role="note">
          {record.analyses.kept.policy} at {record.analyses.kept.budget}:{" "}
          <button class="open" onClick={() => void ([view.value, mode.value] = ["text", "kept"])}>
            what it keeps, in the text
          </button>
          ; the score “attention on what is kept” says what that is worth to each head. Weights are those of the whole cache.
        </p>
      )}
      {record.rows && (
        <p class="notice" role="note">
          {count(record.rows.count)} of {count(n)} query rows were sampled (seed {record.rows.seed}). Statistics are estimates from these rows;
          the other rows have no weights here.
        </p>
      )}
      <main>{view.value === "heads" ? <Heads /> : view.value === "map" ? <MapView /> : view.value === "flow" ? <FlowView /> : <TextView />}</main>
      <footer>
        <p>
          A weight is the share of a query’s attention that a key gets in one head; a row adds up to one.{" "}
          {divided && `In layers ${divided} A has no such rows: a weight is |A| over the sum of |A| in its row. `}It says where the head looked, not why
          the model answered as it did: <em>attention is not explanation</em>.{" "}
          {served && "Weights under the pointer and map tiles are recomputed exactly."}
        </p>
        <p class="left-out">{leftOut().join(" ")}</p>
      </footer>
      <Help />
    </>
  );
}

/** How the text of the record beside this one differs. */
function otherText(): string {
  const some = otherTokens.slice(0, 5).map((at) => `‘${alone(at).trim()}’ / ‘${alone(at, 2).trim()}’ at ${at}`);
  return `another text of as many tokens, of which ${count(otherTokens.length)} differ: ${some.join(", ")}${otherTokens.length > some.length ? " …" : ""}`;
}

const FORMATS: Record<Format, string> = { PNG: "as a picture", SVG: "as a drawing", CSV: "its data" };

/** Saves what is shown, once all of it is there; until then it says what is not. */
function Save() {
  const pick = (event: MouseEvent, format: Format): void => {
    (event.currentTarget as HTMLElement).closest("details")!.open = false;
    void save(format);
  };
  const formats = Object.keys(FORMATS) as Format[];
  return (
    <details class="save">
      <summary title="save what is shown" aria-label="save what is shown">⤓</summary>
      <div role="group" aria-label="save">
        {formats.map((format) => (
          <button key={format} disabled={Boolean(missing(format))} title={missing(format) || undefined} onClick={(event) => pick(event, format)}>
            <b>{format}</b> {FORMATS[format]}
          </button>
        ))}
        {[...new Set(formats.map(missing))].map((why) => why && <p key={why} class="small">{why}</p>)}
      </div>
    </details>
  );
}

function press(event: KeyboardEvent): void {
  const within = event.target as HTMLElement;
  if (event.ctrlKey || event.metaKey || event.altKey || within.matches("input:not([type=range]):not([type=checkbox]), select")) return;
  const actions: Record<string, () => void> = {
    "1": () => (view.value = "heads"),
    "2": () => (view.value = "map"),
    "3": () => (view.value = "text"),
    "4": () => (view.value = OPEN[3] ?? view.value),
    "[": () => stepHead(-1),
    "]": () => stepHead(1),
    d: () => (theme.value = theme.value === "dark" ? "light" : "dark"),
    "?": () => (help.value = !help.value),
    "/": seek,
  };
  const action = actions[event.key];
  if (!action) return;
  action();
  event.preventDefault();
}
