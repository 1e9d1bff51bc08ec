/** What the keys do and what the numbers mean. */
import { useEffect, useRef } from "preact/hooks";
import { record, threshold } from "../data";
import { CUT, measured, ROLES } from "../roles";
import { help } from "../state";

const KEYS: [keys: string, what: string][] = [
  ["1 2 3", "heads, map, text; 4 the flow graph, where the record has one"],
  ["[ ]", "the head before, the head after"],
  ["← → ↑ ↓", "among heads; among pairs on the map; among tokens in the text"],
  ["Enter", "open the head; pin the pair"],
  ["+ − 0", "on the map: nearer, farther, all of it"],
  ["Shift + arrows", "on the map: move it"],
  ["/", "find words in the text; Enter and Shift + Enter go on and back"],
  ["Shift + click", "in the list of heads beside a map: compare with that head"],
  ["d", "dark or light"],
  ["?", "this help"],
];

export function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (help.value && !dialog.current!.open) dialog.current!.showModal();
    if (!help.value && dialog.current!.open) dialog.current!.close();
  }, [help.value]);
  return (
    <dialog ref={dialog} class="help" aria-labelledby="help-title" onClose={() => (help.value = false)} onClick={(event) => event.target === dialog.current && (help.value = false)}>
      <div>
        <button class="quiet close" onClick={() => (help.value = false)} aria-label="close">
          ×
        </button>
        <h2 id="help-title">Keys</h2>
        <dl class="keys">
          {KEYS.map(([keys, what]) => (
            <div key={keys}>
              <dt>
                <kbd>{keys}</kbd>
              </dt>
              <dd>{what}</dd>
            </div>
          ))}
        </dl>
        <h2>What the numbers mean</h2>
        <p>
          For each token (the <em>query</em>) a head shares one unit of attention among the tokens it may see (the <em>keys</em>). Weights of{" "}
          {threshold} and more are kept one by one; of weaker ones the page holds the mean over {record.cells} × {record.cells} cells of the map.
        </p>
        <p>
          <strong>Entropy</strong> is how spread a row is, in nats: 0 is all on one key, and e to the entropy is the number of keys it would be spread
          over evenly. <strong>Received</strong> is the mean weight that a token gets from the queries that may see it. Where
          tokens are ranked or shaded by it, it is weighed by evidence, as if a quarter of all queries had seen the token besides and given it nothing: the
          last tokens of a text are seen by few queries, most of them neighbours.
        </p>
        <p>
          <strong>‖A v‖</strong> is the weight times the Euclidean norm of the key’s value, the length of what the head takes from it: much looked at and
          little taken is a resting place. <strong>Words</strong> are those of Unicode; between them a weight is the sum over the tokens of the key and the mean over
          those of the query. <strong>q ∘ k</strong> are the products of a query’s and a key’s coordinates, scaled; their sum is the pair’s score, of which the row’s
          softmax makes weights. <strong>Surprise</strong> is −ln of the probability that the model gave to the token that came.
        </p>
        <p>{measured ? "A head is labelled with the roles that regard heads found, on stimuli of their own, with the thresholds of their papers:" : `A head is labelled with the roles that it scores ${CUT} or more in, in this text:`}</p>
        <dl>
          {ROLES.map((role) => (
            <div key={role.name}>
              <dt>
                <span class={`tag ${role.name}`}>{role.label}</span>
              </dt>
              <dd>{role.meaning}</dd>
            </div>
          ))}
        </dl>
        <p>Weights say where a head looked. What it did with what it found, and whether the answer depends on it, they do not say.</p>
      </div>
    </dialog>
  );
}
