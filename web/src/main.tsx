/** The page of a record: all heads, the map of one, the text shaded by it. */
import { render } from "preact";
import { followAddress, followSystemTheme } from "./state";
import { Page } from "./views/Page";
import "./style.css";

followSystemTheme();
followAddress();
render(<Page />, document.getElementById("page")!);
