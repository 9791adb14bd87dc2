/**
 * Reading a list of books from CSV text (RFC 4180), row by row and from any row on. Pure: it knows neither storage nor
 * clock. After each row there is an offset at which another reader can begin, which is how a job survives eviction.
 */

/** The file as a whole cannot be read, which ends the job as failed. */
export class JobFailure extends Error {
    constructor(code, message) {
        super(message);
        this.code = code;
    }
}

// What exports of libraries and shops call their columns; compared in lower case, letters and digits only.
const COLUMNS = {
    title: ["title", "booktitle", "name"],
    author: ["author", "authors", "primaryauthor", "writer", "creator"],
    isbn: ["isbn", "isbn13", "isbn10", "ean"],
    publisher: ["publisher", "publishinghouse"],
    publicationYear: ["year", "publicationyear", "yearpublished", "published"],
    coverUrl: ["coverurl", "cover", "image", "imageurl"],
};
const DELIMITERS = [",", ";", "\t", "|"];
const MOST_CHARACTERS = 16 * 1024; // of a row

/** The beginning of a text. A letter of two code units is not cut in half: other languages' parsers refuse that. */
export const cut = (text, length) => text.slice(0, length).toWellFormed();

/** The text of a file that comes in pieces of bytes. */
export function decode(pieces) {
    const decoder = new TextDecoder("utf-8", { fatal: true });
    try {
        return pieces.map((piece) => decoder.decode(piece, { stream: true })).join("") + decoder.decode();
    } catch {
        throw new JobFailure("CSV_ENCODING", "the file is not UTF-8 text");
    }
}

/** Read the header, and the whole text once: which column holds what, where the rows begin, how many there are. */
export function survey(text) {
    const guesses = DELIMITERS.map((delimiter) => layoutOf(text, delimiter)).filter((guess) => guess !== undefined);
    if (guesses.length === 0) throw new JobFailure("CSV_EMPTY", "the file is empty");
    const layout = guesses.reduce((best, guess) => (known(guess) > known(best) ? guess : best));
    for (const field of ["title", "author"]) {
        if (!(field in layout.fields)) throw new JobFailure("CSV_HEADER", `the first row names no column "${field}"`);
    }
    let total = 0;
    let row = readRow(text, layout.offset, layout.delimiter);
    while (row !== undefined) {
        total += 1;
        row = readRow(text, row.offset, layout.delimiter);
    }
    return { layout, total };
}

/**
 * The row at this offset that is not blank: its values, what is wrong with its quotes, and where the next one begins.
 * Undefined at the end.
 */
export function readRow(text, offset, delimiter) {
    let at = offset;
    while (text[at] === "\n" || text[at] === "\r") at += 1;
    if (at >= text.length) return undefined;
    const start = at;
    const values = [];
    // A quote that is missing swallows rows: the next one is looked for on the next line.
    const broken = (problem) => ({ values: [], problem, offset: endOfLine(text, start) });
    for (;;) {
        let value = "";
        if (text[at] === '"') {
            for (;;) {
                const quote = text.indexOf('"', at + 1);
                if (quote < 0 || quote > start + MOST_CHARACTERS) return broken("a quote is never closed");
                value += text.slice(at + 1, quote);
                at = quote + 1;
                if (text[at] !== '"') break;
                value += '"';
            }
            if (!isEnd(text, at, delimiter)) return broken("text follows a closed quote");
        }
        const begin = at;
        while (!isEnd(text, at, delimiter)) at += 1;
        if (at > start + MOST_CHARACTERS) return broken("the row is too long");
        values.push((value + text.slice(begin, at)).trim());
        if (text[at] !== delimiter) return { values, offset: at };
        at += 1;
    }
}

/** Make a book of a row, or say why it is none: `{book}` or `{error}`. `number` is the row's own, from 1. */
export function checkRow({ values, problem }, layout, number) {
    const book = {};
    for (const [field, columns] of Object.entries(layout.fields)) {
        const value = columns.map((column) => values[column]).find((text) => text);
        if (value !== undefined) book[field] = value;
    }
    if (/^\d{1,4}$/.test(book.publicationYear)) book.publicationYear = Number(book.publicationYear);
    const wrong = problem ?? whyNoBook(values, book, layout);
    if (wrong === undefined) return { book };
    return { error: { title: book.title ?? `(row ${number})`, error: `row ${number}: ${wrong}` } };
}

function whyNoBook(values, book, layout) {
    if (values.length < layout.columns || values.slice(layout.columns).some((text) => text)) {
        return `${values.length} columns where the header has ${layout.columns}`;
    }
    for (const field of ["title", "author"]) if (!(field in book)) return `the ${field} is missing`;
    if (!("isbn" in book)) return undefined;
    const isbn = toIsbn13(book.isbn);
    if (isbn === undefined) return `"${cut(book.isbn, 40)}" is no ISBN`;
    book.isbn = isbn;
    return undefined;
}

/** An ISBN of 10 or 13 digits as the latter, or undefined where the check digit or anything else is wrong. */
export function toIsbn13(written) {
    // Some exports write ="978…" so that a spreadsheet takes it for text.
    const compact = written.replace(/^=|["\s-]/g, "").toUpperCase();
    if (/^\d{9}[\dX]$/.test(compact)) {
        const digits = [...compact].map((sign) => (sign === "X" ? 10 : Number(sign)));
        const sum = digits.reduce((sum, digit, place) => sum + (10 - place) * digit, 0);
        const stem = `978${compact.slice(0, 9)}`;
        return sum % 11 === 0 ? stem + checkDigit(stem) : undefined;
    }
    return /^97[89]\d{10}$/.test(compact) && checkDigit(compact) === compact[12] ? compact : undefined;
}

function checkDigit(isbn) {
    const digits = [...isbn.slice(0, 12)].map(Number);
    const sum = digits.reduce((sum, digit, place) => sum + (place % 2 === 0 ? 1 : 3) * digit, 0);
    return String((10 - (sum % 10)) % 10);
}

function layoutOf(text, delimiter) {
    const row = readRow(text, 0, delimiter);
    if (row === undefined) return undefined;
    const fields = {};
    row.values.forEach((name, column) => {
        const plain = name.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");
        const field = Object.keys(COLUMNS).find((field) => COLUMNS[field].includes(plain));
        if (field !== undefined) (fields[field] ??= []).push(column);
    });
    return { delimiter, columns: row.values.length, fields, offset: row.offset };
}

const known = (layout) => Object.keys(layout.fields).length;

const isEnd = (text, at, delimiter) => at >= text.length || [delimiter, "\n", "\r"].includes(text[at]);

function endOfLine(text, at) {
    const end = text.indexOf("\n", at);
    return end < 0 ? text.length : end;
}
