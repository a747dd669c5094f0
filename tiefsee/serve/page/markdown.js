// A little Markdown, as DOM nodes. Model text is never parsed as HTML: it only ever becomes text nodes.

/** The block elements of `source`: paragraphs, headings, lists, tables, fenced code. */
export function render(source) {
  const out = document.createDocumentFragment(), lines = source.split("\n");
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    let match;
    if ((match = line.match(/^\s*```(\S*)/))) {
      const code = [];
      for (i++; i < lines.length && !/^\s*```/.test(lines[i]); i++) code.push(lines[i]);
      i++;
      out.append(element("pre", element("code", code.join("\n"))));
    } else if ((match = line.match(/^#{1,6}\s+(.*)/))) {
      out.append(element("h3", ...inline(match[1])));
      i++;
    } else if (isItem(line)) {
      const ordered = /^\s*\d/.test(line), list = element(ordered ? "ol" : "ul");
      for (; i < lines.length && isItem(lines[i]); i++) {
        list.append(element("li", ...inline(lines[i].replace(/^\s*([-*+]|\d+[.)])\s+/, ""))));
      }
      out.append(list);
    } else if (line.includes("|") && /^\s*\|?[\s:|-]+\|[\s:|-]*$/.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      const table = element("table", row(line, "th"));
      for (i += 2; i < lines.length && lines[i].includes("|"); i++) table.append(row(lines[i], "td"));
      out.append(table);
    } else if (line.trim() === "") {
      i++;
    } else {
      const text = [];
      for (; i < lines.length && lines[i].trim() !== "" && !/^\s*```|^#{1,6}\s/.test(lines[i]) && !isItem(lines[i]); i++) {
        text.push(lines[i]);
      }
      if (text.length === 0) text.push(lines[i++]);
      out.append(element("p", ...inline(text.join("\n"))));
    }
  }
  return out;
}

const isItem = (line) => /^\s*([-*+]|\d+[.)])\s+\S/.test(line);

function row(line, kind) {
  const cells = line.trim().replace(/^\||\|$/g, "").split("|");
  return element("tr", ...cells.map((cell) => element(kind, ...inline(cell.trim()))));
}

/** Code, bold, emphasis and links; a link leads to http(s) only and shows where. */
function inline(text) {
  const nodes = [], pattern = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;
  let last = 0;
  for (const match of text.matchAll(pattern)) {
    nodes.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    if (match[1]) nodes.push(element("code", match[1]));
    else if (match[2]) nodes.push(element("strong", match[2]));
    else if (match[3]) nodes.push(element("em", match[3]));
    else {
      const link = element("a", match[4]);
      link.href = match[5];
      link.title = match[5];
      link.rel = "noopener noreferrer nofollow";
      link.target = "_blank";
      nodes.push(link);
    }
  }
  nodes.push(text.slice(last));
  return nodes;
}

export function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
