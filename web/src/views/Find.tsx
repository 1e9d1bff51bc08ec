/** Looks for words in the text. */
import { current, matches, step } from "../find";
import { find } from "../state";
import { count } from "../words";

export function Find() {
  const found = matches.value.length;
  const press = (event: KeyboardEvent): void => {
    if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") (event.currentTarget as HTMLElement).blur();
  };
  return (
    <div class="find" role="search">
      <input type="search" placeholder="find in the text (/)" aria-label="find in the text" value={find.value} onInput={(event) => (find.value = event.currentTarget.value)} onKeyDown={press} />
      {find.value && (
        <>
          <span class="small" role="status">
            {!found ? "nowhere" : current.value < 0 ? `${count(found)} ${found > 1 ? "places" : "place"}` : `${count(current.value + 1)} of ${count(found)}`}
          </span>
          <button disabled={!found} aria-label="the place before" onClick={() => step(-1)}>↑</button>
          <button disabled={!found} aria-label="the next place" onClick={() => step(1)}>↓</button>
        </>
      )}
    </div>
  );
}
