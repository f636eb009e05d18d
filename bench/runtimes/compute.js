// What a JavaScript engine compiles, deoptimises and compiles again: recursion, closures, objects of several shapes,
// arrays, strings, regular expressions, typed arrays, JSON, generated functions.
"use strict";

function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

function shapes(rounds) {
    const makers = [
        (i) => ({ x: i, area() { return this.x * this.x; } }),
        (i) => ({ x: i, y: 2, area() { return this.x * this.y; } }),
        (i) => ({ r: i, area() { return this.r * 3; } }),
        (i) => ({ a: 1, b: i, c: 2, area() { return this.a + this.b + this.c; } }),
    ];
    let sum = 0;
    for (let i = 0; i < rounds; i++) {
        const shape = makers[i % (1 + ((i >> 12) & 3))](i & 1023);
        sum = (sum + shape.area()) % 1000000007;
    }
    return sum;
}

function words(rounds) {
    const counts = new Map();
    let text = "";
    for (let i = 0; i < rounds; i++) text += "word" + ((i * 7919) % 997) + (i % 10 ? " " : ".\n");
    for (const match of text.matchAll(/word(\d+)/g)) counts.set(match[1], (counts.get(match[1]) || 0) + 1);
    return JSON.parse(JSON.stringify([...counts].sort())).length;
}

function matrix(size) {
    const a = new Float64Array(size * size).map((_, i) => i % 17);
    const b = new Float64Array(size * size).map((_, i) => i % 13);
    let trace = 0;
    for (let i = 0; i < size; i++)
        for (let j = 0; j < size; j++) {
            let sum = 0;
            for (let k = 0; k < size; k++) sum += a[i * size + k] * b[k * size + j];
            if (i === j) trace += sum;
        }
    return trace;
}

function generated(functions) {
    let sum = 0;
    for (let i = 0; i < functions; i++) {
        const f = new Function("x", `let s = 0; for (let i = 0; i < 2000; i++) s = (s * ${i % 31} + x + i) | 0; return s;`);
        for (let j = 0; j < 5; j++) sum = (sum + f(j)) | 0;
    }
    return sum;
}

for (let round = Number(process.argv[2]); round > 0; round--)
    console.log(fib(27), shapes(400000), words(30000), matrix(120), generated(300));
