/* A load generator for chat completions that checks every answer whole. One thread, one epoll.
 *
 *   load --port P [--connections 64] [--seconds 2] [--warmup 0.3] [--rate R] [--body-bytes 1024]
 *        [--chunks N [--tick US] [--usage]] [--keys a,b,…] [--model NAME] [--path /v1/…] [--hold] [--lenient]
 *
 * Without --chunks it asks for answers in one piece, with it for streams of N events. Closed loop: each
 * connection asks anew when its answer is complete. With --rate, R requests a second are due at even
 * distances and latency counts from when one was due, so that a stall is not hidden by asking less. --hold
 * opens one stream per connection, prints "open", and waits for its input to close. --lenient lets
 * finish_reason and usage come in events of another form, as LiteLLM's proxy writes streams anew. No two
 * requests are equal: number, text and length differ. The last line of output is a JSON object.
 */
#include "common.h"

enum { IN_BYTES = 1 << 17, TEXT_BYTES = 1 << 16, EVENTS = 256, KEYS = 16, BAD_IN_A_ROW = 2000 };

typedef struct Client {
    int fd;
    bool busy, watching_out, chunked, streaming, done;
    char *out, *in; /* a request; what came and was not looked at yet */
    size_t out_len, out_sent, in_len;
    char *payload; /* of the answer, without its framing, as far as it was not judged yet */
    size_t payload_len;
    long need; /* -1: in the head; bytes that miss of the body, or of a chunk; 0: before a chunk's size */
    int events; /* of the stream, so far */
    bool usage;
    char mark[12]; /* "#0000000123" */
    int64_t began;
    struct Client *next_idle;
} Client;

static int epoll_fd, port = 8000, connections = 64, chunks, body_bytes = 1024, key_count;
static long tick_us, rate;
static double seconds = 2, warmup = 0.3;
static bool want_usage, hold, lenient;
static const char *model = "bench-model", *path = "/v1/chat/completions", *keys[KEYS] = {"cpk_none"};
static char text[TEXT_BYTES];
static uint32_t starts[TEXT_BYTES / 2], start_count; /* where words begin in `text` */
static char *heads[KEYS];
static size_t head_lens[KEYS];

static int64_t now, from, until; /* ns; requests that end in [from, until) are counted */
static uint64_t asked, ended, counted, counted_events, all_events, bad, bad_in_a_row, reads, opened, late;
static char first_bad[400];
static Histogram latency, first, lag; /* lag: of --rate, how late a request was written */
static Client *idle;

static void prepare(void) {
    static const char *words[] = {"the ", "gateway ", "hands ", "tokens ", "on, ", "whatever ", "model ", "is ",
        "asked; ", "please ", "explain ", "why ", "\\\"that\\\" ", "matters.\\n", "to ", "{a: 1} ", "caf\u00e9 ", "users "};
    uint32_t random = 2463534242u;
    size_t length = 0;
    for (;;) {
        random ^= random << 13, random ^= random >> 17, random ^= random << 5;
        const char *word = words[random % (sizeof words / sizeof *words)];
        if (length + strlen(word) > TEXT_BYTES) break;
        starts[start_count++] = (uint32_t)length;
        memcpy(text + length, word, strlen(word));
        length += strlen(word);
    }
    for (int i = 0; i < key_count; i++)
        head_lens[i] = (size_t)asprintf(&heads[i],
            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n"
            "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 2.8.1\r\n"
            "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.1\r\nX-Stainless-OS: Linux\r\n"
            "X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.11.7\r\n"
            "Authorization: Bearer %s\r\nX-Stainless-Async: async:asyncio\r\nx-stainless-retry-count: 0\r\n"
            "x-stainless-read-timeout: 600\r\nContent-Length: ", path, port, keys[i]);
}

static char *add(char *to, const char *bytes, size_t length) { return (char *)memcpy(to, bytes, length) + length; }
#define ADD(to, literal) add(to, literal, sizeof literal - 1)

/* Head and body of the next request, as the openai package writes them: the messages before the model. Only
 * compressed answers are not asked for, as nothing here could check them. */
static void write_request(Client *c) {
    static char *body, tail[400], order[64];
    static size_t tail_len, order_len;
    if (!body) {
        body = malloc((size_t)body_bytes + TEXT_BYTES);
        tail_len = (size_t)snprintf(tail, sizeof tail, "\"}],\"model\":\"%s\",\"max_tokens\":%d,\"temperature\":0.7%s%s}",
            model, chunks ? chunks : 256, chunks ? ",\"stream\":true" : "",
            want_usage ? ",\"stream_options\":{\"include_usage\":true}" : "");
        order_len = chunks ? (size_t)snprintf(order, sizeof order, " chunks=%d tick=%ld] ", chunks, tick_us)
                           : (size_t)snprintf(order, sizeof order, "] ");
    }
    uint64_t number = ++asked;
    c->mark[0] = '#';
    digits(c->mark + 1, 10, number);
    char *at = ADD(body, "{\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
                         "{\"role\":\"user\",\"content\":\"[");
    at = add(add(at, c->mark, 11), order, order_len);
    long want = body_bytes - (at - body) - (long)tail_len - 32 + (long)(number * 7 % 64);
    if (want > TEXT_BYTES / 2) want = TEXT_BYTES / 2;
    uint32_t begin = (uint32_t)(number * 131 % (start_count / 2)), after = begin;
    /* Words are 5.7 bytes on average; what a gateway must not know is exactly how many there will be. */
    while (after < start_count - 1 && (long)(starts[after] - starts[begin]) < want)
        after += want - (long)(starts[after] - starts[begin]) > 64 ? 6 : 1;
    at = add(at, text + starts[begin], starts[after] - starts[begin]);
    at = add(at, tail, tail_len);
    size_t length = (size_t)(at - body), key = number % (uint64_t)key_count;
    char *out = add(c->out, heads[key], head_lens[key]);
    int width = length > 9999 ? 5 : length > 999 ? 4 : 3;
    digits(out, width, length);
    out = add(ADD(out + width, "\r\n\r\n"), body, length);
    c->out_len = (size_t)(out - c->out), c->out_sent = 0;
}

static void watch(Client *c, int how, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, how, c->fd, &e);
}

static void open_client(Client *c) {
    struct sockaddr_in a = {AF_INET, htons((uint16_t)port), {htonl(INADDR_LOOPBACK)}, {0}};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->busy = c->watching_out = false;
    c->in_len = 0;
    /* Blocking: on the loopback it takes microseconds, and a refusal is known at once. */
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a)) perror("load: connect"), exit(1);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void flush(Client *c) {
    ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_len - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) c->out_sent += (size_t)sent;
    bool more = c->out_sent < c->out_len && (sent >= 0 || errno == EAGAIN); /* else recv will tell */
    if (more != c->watching_out) watch(c, EPOLL_CTL_MOD, EPOLLIN | (more ? EPOLLOUT : 0));
    c->watching_out = more;
}

static void ask(Client *c, int64_t due) {
    write_request(c);
    c->busy = true, c->chunked = c->streaming = c->done = c->usage = false;
    c->need = -1, c->events = 0, c->payload_len = 0;
    c->began = due;
    flush(c);
}

static void release(Client *c) {
    c->busy = false;
    if (rate) c->next_idle = idle, idle = c;
    else if (!hold && now < until) ask(c, now);
}

/* An answer that is not what the engine sent: noted, and the connection is made anew. */
static void fail(Client *c, const char *why) {
    bool asked_for = c->busy;
    if (!bad++)
        snprintf(first_bad, sizeof first_bad, "%s (request %s, event %d; next: %.*s)", why, c->mark + 1, c->events,
                 (int)(c->payload_len < 120 ? c->payload_len : 120), c->payload);
    if (++bad_in_a_row >= BAD_IN_A_ROW) until = now; /* not a hiccup: say so and end */
    close(c->fd);
    open_client(c);
    if (asked_for) release(c);
}

static bool has(const char *bytes, size_t length, const char *what) {
    return memmem(bytes, length, what, strlen(what)) != NULL;
}

/* One event of a stream, without its blank line. What is wrong with it, or NULL. */
static const char *event(Client *c, const char *e, size_t length) {
    if (length && e[0] == ':') return NULL; /* a comment: allowed anywhere */
    if (length < 6 || memcmp(e, "data: ", 6) != 0) return "not an event";
    if (c->done) return "an event after [DONE]";
    if (length == 12 && memcmp(e + 6, "[DONE]", 6) == 0) {
        if (c->events != chunks) return "[DONE] before all chunks";
        if (want_usage != c->usage) return "no usage event";
        c->done = true;
        return NULL;
    }
    if (e[length - 1] != '}') return "an event that is cut";
    if (has(e, length, "\"choices\":[],") || has(e, length, "\"choices\": [],")) {
        if (!want_usage || c->usage || !has(e, length, "\"usage\"")) return "a usage event nobody asked for";
        c->usage = true;
        return NULL;
    }
    if (lenient && c->events == chunks && !has(e, length, c->mark)) {
        c->usage = c->usage || has(e, length, "\"usage\":{");
        return NULL;
    }
    if (c->events >= chunks) return "too many chunks";
    if (c->events == 0) {
        if (!has(e, length, "\"assistant\"")) return "a first chunk without a role";
        opened++;
        if (now >= from) note(&first, now - c->began);
    } else {
        char mark[20];
        memcpy(mark, c->mark, 11);
        mark[11] = '.', mark[17] = 0;
        digits(mark + 12, 5, (uint64_t)c->events);
        if (!has(e, length, mark)) return "a wrong chunk";
        if (c->events == chunks - 1 && !lenient && !has(e, length, "\"stop\"")) return "a last chunk without finish_reason";
    }
    c->events++, all_events++;
    if (now >= from && now < until) counted_events++;
    return NULL;
}

/* Some more of the body; judges the events that are whole. */
static const char *payload(Client *c, const char *bytes, size_t length) {
    if (c->payload_len + length > IN_BYTES) return "too long";
    memcpy(c->payload + c->payload_len, bytes, length);
    c->payload_len += length;
    if (!c->streaming) return NULL;
    char *at = c->payload, *stop = at + c->payload_len, *end;
    while ((end = memmem(at, (size_t)(stop - at), "\n\n", 2))) {
        const char *wrong = event(c, at, (size_t)(end - at));
        if (wrong) return wrong;
        at = end + 2;
    }
    memmove(c->payload, at, c->payload_len = (size_t)(stop - at));
    return NULL;
}

static const char *finish(Client *c) {
    if (c->in_len) return "bytes after the answer";
    if (c->streaming) {
        if (!c->done) return "no [DONE]";
        if (c->payload_len) return "bytes after [DONE]";
    } else {
        if (c->payload_len < 400 || c->payload[c->payload_len - 1] != '}') return "a short body";
        if (!has(c->payload, c->payload_len, c->mark)) return "another request's answer";
        if (!has(c->payload, c->payload_len, "\"usage\"")) return "no usage";
    }
    ended++, bad_in_a_row = 0;
    if (now >= from && now < until) {
        counted++;
        note(&latency, now - c->began);
    }
    release(c);
    return NULL;
}

static const char *head(Client *c, char *end) {
    *end = 0; /* text now, without its blank line */
    if (strncmp(c->in, "HTTP/1.1 200 ", 13) != 0) {
        memcpy(c->payload, c->in, c->payload_len = 12);
        return "a wrong status";
    }
    char *length = header(c->in, "content-length"), *type = header(c->in, "content-type");
    char *coding = header(c->in, "transfer-encoding");
    c->chunked = coding && strncasecmp(coding, " chunked", 8) == 0;
    if (c->chunked == (length != NULL)) return "not framed by exactly one of length and chunks";
    if (!type) return "no content type";
    c->streaming = strncmp(type, " text/event-stream", 18) == 0;
    if (c->streaming != (chunks > 0)) return "a stream for none, or none for a stream";
    c->need = length ? strtol(length, NULL, 10) : 0;
    return NULL;
}

/* Take apart what has come. What is wrong with it, or NULL. */
static const char *take(Client *c) {
    char *at = c->in, *stop = at + c->in_len;
    const char *wrong = NULL;
    while (at < stop && !wrong) {
        if (!c->busy) return "bytes that nobody asked for";
        if (c->need < 0) {
            char *end = memmem(at, (size_t)(stop - at), "\r\n\r\n", 4);
            if (!end) break;
            wrong = head(c, end);
            at = end + 4;
        } else if (!c->chunked || c->need > 2) { /* of a chunk, its CRLF is counted in */
            size_t rest = (size_t)(c->chunked ? c->need - 2 : c->need), n = (size_t)(stop - at);
            if (n > rest) n = rest;
            wrong = payload(c, at, n);
            at += n, c->need -= (long)n;
        } else if (c->need) {
            if (stop - at < c->need) break;
            if (memcmp(at, "\r\n", 2) != 0) return "a chunk that is longer than it says";
            at += 2, c->need = 0;
        } else {
            char *line = memmem(at, (size_t)(stop - at), "\r\n", 2), *digits_end;
            if (!line) break;
            long size = strtol(at, &digits_end, 16);
            if (digits_end == at || (digits_end != line && *digits_end != ';')) return "a chunk without a size";
            if (size) at = line + 2, c->need = size + 2;
            else if (stop - line < 4) break;
            else if (memcmp(line, "\r\n\r\n", 4) != 0) return "a wrong last chunk";
            else at = line + 4, c->need = -2;
        }
        if (!wrong && c->need == (c->chunked ? -2 : 0)) { /* the answer has ended */
            memmove(c->in, at, c->in_len = (size_t)(stop - at));
            return finish(c);
        }
    }
    if (!wrong && at != c->in) memmove(c->in, at, c->in_len = (size_t)(stop - at));
    return wrong;
}

static void readable(Client *c) {
    ssize_t got = recv(c->fd, c->in + c->in_len, IN_BYTES - c->in_len, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    reads++;
    const char *wrong = got <= 0 ? (c->busy ? "closed before its end" : "") : (c->in_len += (size_t)got, take(c));
    if (!wrong) return;
    if (*wrong) return fail(c, wrong);
    /* Closed between requests, which HTTP allows. */
    close(c->fd);
    open_client(c);
}

static int parse(int argc, char **argv) {
    struct option options[] = {{"port", 1, 0, 'p'}, {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'},
        {"warmup", 1, 0, 'w'}, {"rate", 1, 0, 'r'}, {"body-bytes", 1, 0, 'b'}, {"chunks", 1, 0, 'n'}, {"tick", 1, 0, 't'},
        {"usage", 0, 0, 'u'}, {"keys", 1, 0, 'k'}, {"model", 1, 0, 'm'}, {"path", 1, 0, 'P'}, {"hold", 0, 0, 'h'},
        {"lenient", 0, 0, 'l'}, {0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'c': connections = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 'r': rate = atol(optarg); break;
        case 'b': body_bytes = atoi(optarg); break;
        case 'n': chunks = atoi(optarg); break;
        case 't': tick_us = atol(optarg); break;
        case 'u': want_usage = true; break;
        case 'm': model = optarg; break;
        case 'P': path = optarg; break;
        case 'h': hold = true; break;
        case 'l': lenient = true; break;
        case 'k':
            for (char *k = strtok(optarg, ","); k && key_count < KEYS; k = strtok(NULL, ",")) keys[key_count++] = k;
            break;
        default: return 2;
    }
    if (!key_count) key_count = 1;
    if (chunks == 1) chunks = 2; /* a first one with the role, a last one with the reason */
    return 0;
}

int main(int argc, char **argv) {
    if (parse(argc, argv)) return 2;
    raise_file_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    prepare();
    Client *clients = calloc((size_t)connections, sizeof *clients);
    for (int i = 0; i < connections; i++) {
        clients[i].out = malloc((size_t)body_bytes + 8192);
        clients[i].in = malloc(IN_BYTES + 1), clients[i].payload = malloc(IN_BYTES);
        open_client(&clients[i]);
    }
    now = clock_ns();
    from = now + (int64_t)(warmup * 1e9), until = from + (int64_t)(seconds * 1e9);
    int64_t due = now, patience = until + 10000000000LL, begin = now;
    for (int i = 0; i < connections; i++) {
        if (rate) release(&clients[i]);
        else ask(&clients[i], now);
    }
    for (bool said = false;;) {
        int64_t wait_ns = 10000000;
        /* After 20 s, as many as there are: a gateway may have a limit of its own. */
        if (hold && !said && (opened + bad >= (uint64_t)connections || now - begin > 20000000000LL))
            said = true, puts("open"), fflush(stdout);
        if (hold && said && (getchar() == EOF)) break;
        while (rate && due <= now && due < until) {
            if (!idle) { late++; break; } /* all connections wait: this one goes as soon as one is free */
            Client *c = idle;
            idle = c->next_idle;
            ask(c, due);
            if (due >= from) note(&lag, clock_ns() - due);
            due += 1000000000LL / rate;
        }
        if (rate && idle && due < until) wait_ns = due > now ? due - now : 0;
        if (!hold && now >= until) {
            bool waiting = false;
            for (int i = 0; i < connections && !waiting; i++) waiting = clients[i].busy;
            if (!waiting || now >= patience) break;
        }
        struct epoll_event events[EVENTS];
        struct timespec wait = {0, wait_ns};
        int n = epoll_pwait2(epoll_fd, events, EVENTS, &wait, NULL);
        now = clock_ns();
        for (int i = 0; i < n; i++) {
            Client *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush(c);
            if (events[i].events & ~(unsigned)EPOLLOUT) readable(c);
        }
    }
    for (int i = 0; i < connections && !hold; i++)
        if (clients[i].busy) fail(&clients[i], "not ended in 10 s");
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    printf("{\"requests\":%lu,\"requests_all\":%lu,\"requests_per_s\":%.1f,\"chunks\":%lu,\"chunks_all\":%lu,"
           "\"chunks_per_s\":%.1f,\"reads\":%lu,\"opened\":%lu,\"late\":%lu,\"bad\":%lu,\"cpu_s\":%.4f,\"wall_s\":%.4f,"
           "\"busy\":%.3f", counted, ended, (double)counted / seconds, counted_events, all_events,
           (double)counted_events / seconds, reads, opened, late, bad, cpu, 1e-9 * (double)(now - begin),
           cpu / (1e-9 * (double)(now - begin)));
    print_histogram("latency_us", &latency);
    print_histogram("first_us", &first);
    print_histogram("lag_us", &lag);
    for (char *c = first_bad; *c; c++)
        if (*c == '"' || *c == '\\' || *c < 32 || *c == 127) *c = '\''; /* fit for a JSON string */
    printf(",\"first_bad\":\"%s\"}\n", first_bad);
}
