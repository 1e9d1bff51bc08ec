/** What the model expected after the chosen token, and what came. */
import { header, n, predictions, record } from "../data";
import { shown } from "../state";
import { number, visible } from "../words";
import { useLoaded } from "./useLoaded";

const { ids, vocabulary = {} } = header.tokens;
const nameOf = (id: number): string => visible(vocabulary[id] ?? `⟨${id}⟩`);

export function Next() {
  const at = shown.value;
  const known = useLoaded(predictions, []);
  if (!known) return null;
  const first = at * header.predicted;
  const best = known.ids.slice(first, first + header.predicted).map((id, rank) => ({ id, probability: known.probabilities[first + rank]! }));
  const came = at + 1 < ids.length ? ids[at + 1]! : null;
  const chance = came === null ? NaN : Math.exp(known.logProbability[at + 1]!);
  return (
    <section class="next" aria-label="next token">
      <h2 title="the model’s own distribution over its vocabulary">What the model expects next</h2>
      <ol class="bars">
        {best.map(({ id, probability }) => (
          <li key={id} class={id === came ? "came" : ""}>
            <span class="bar" style={{ width: `${probability * 100}%` }} />
            <span class="piece">{nameOf(id)}</span>
            <span class="at">{id === came ? (at + 1 >= record.prompt_tokens ? "generated" : "came") : ""}</span>
            <span class="value">{number(probability)}</span>
          </li>
        ))}
      </ol>
      {came !== null && !best.some(({ id }) => id === came) && <p class="small">What came, ‘{visible(header.tokens.texts[at + 1] || "…").trim()}’, had a probability of {number(chance)}.</p>}
      {came === null && at + 1 === n && <p class="small">The text ends here.</p>}
    </section>
  );
}
