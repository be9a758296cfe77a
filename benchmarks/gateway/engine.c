/* A synthetic OpenAI engine: answers like vLLM behind uvicorn, at almost no cost and without a model.
 *
 *   engine [--listen FD]... [--port PORT]... [--model NAME] [--chunks N]
 *
 * One thread, one epoll. Several listening sockets make one process look like several instances. What a
 * request wants is said in its prompt, as that survives every gateway, also those that parse a body and
 * write it anew:
 *
 *   [#0000000123]                        answer with this number in the text
 *   [#0000000123 chunks=256 tick=20000]  if "stream": 256 events, one each 20,000 µs; 0: as fast as it goes
 *   [#0000000123 chunks=33 tick=0 first=50000 gap=10000]
 *                                        the role and the first token after 50,000 µs, then 31 more tokens,
 *                                        each 10,000 µs after the one before, and a usage that counts them
 *
 * Streams of the same tick tick together, as those of one engine step do, and each chunk is a send() of its
 * own. The first chunk comes at once. The number and a chunk's index are in its text, so that the load
 * generator sees any chunk that was lost, doubled or given to another client.
 */
#include "common.h"

enum { IN_BYTES = 1 << 18, OUT_BYTES = 4096, EVENTS = 256, LISTENERS = 16, MARK_DIGITS = 10, INDEX_DIGITS = 5 };

typedef struct Client {
    int fd;
    bool listener, close_after;
    char *in;                     /* what came and is not a whole request yet */
    size_t in_len;
    char out[OUT_BYTES];          /* what the socket did not take */
    size_t out_len;
    /* Of the stream that runs; chunks == 0: none does. */
    int chunks, next;
    bool usage;
    long first_us, gap_us;        /* of a stream with times of its own; first_us == 0: it ticks */
    long began_us;
    long tick_us;
    long due_us;
    char mark[MARK_DIGITS];
    struct Client *before, *after; /* in the list of running streams */
} Client;

static int epoll_fd, default_chunks = 64;
static const char *model = "bench-model";
static Client running = {.before = &running, .after = &running};
static char json_head[256], sse_head[256];
static size_t sse_head_len;

/* An event as a chunk of HTTP; the request's number and the chunk's index are written into a copy. */
typedef struct Template {
    char text[512];
    size_t length, id, mark, tokens;
} Template;
static Template role, middle, last, usage;

static long now_us(void) { return clock_ns() / 1000; }

/* The parts of an answer that change at most once a second. */
static void write_heads(void) {
    char date[64];
    time_t now = time(NULL);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
    snprintf(json_head, sizeof json_head,
             "HTTP/1.1 200 OK\r\ndate: %s\r\nserver: uvicorn\r\ncontent-length: %%zu\r\n"
             "content-type: application/json\r\n\r\n", date);
    sse_head_len = (size_t)snprintf(sse_head, sizeof sse_head,
             "HTTP/1.1 200 OK\r\ndate: %s\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
             "transfer-encoding: chunked\r\n\r\n", date);
}

#define EVENT_START "data: {\"id\":\"chatcmpl-8f2e4c6a0b1d4e5f9a7b3c0000000000\",\"object\":\"chat.completion.chunk\"," \
                    "\"created\":1760000000,\"model\":\"%s\",\"choices\":["
#define MARK "#0000000000.00000"
#define TOKENS "   88" /* overwritten in streams with times of their own; JSON allows the spaces */

static void write_event(Template *t, const char *choices, const char *more) {
    char event[400];
    int n = snprintf(event, sizeof event, EVENT_START "%s]%s}\n\n", model, choices, more);
    t->length = (size_t)snprintf(t->text, sizeof t->text, "%x\r\n%s\r\n", (unsigned)n, event);
    t->id = (size_t)(strstr(t->text, "0000000000\",") - t->text);
    char *mark = strstr(t->text, MARK);
    t->mark = mark ? (size_t)(mark + 1 - t->text) : 0;
    char *tokens = strstr(t->text, TOKENS);
    t->tokens = tokens ? (size_t)(tokens - t->text) : 0;
}

#define CHOICE(delta, finish) \
    "{\"index\":0,\"delta\":{" delta "},\"logprobs\":null,\"finish_reason\":" finish ",\"token_ids\":null}"

static void write_templates(void) {
    write_event(&role, CHOICE("\"role\":\"assistant\",\"content\":\"\"", "null"), "");
    write_event(&middle, CHOICE("\"content\":\" " MARK "\"", "null"), "");
    write_event(&last, CHOICE("\"content\":\" " MARK "\"", "\"stop\""), "");
    write_event(&usage, "", ",\"usage\":{\"prompt_tokens\":213,\"total_tokens\":301,\"completion_tokens\":" TOKENS "}");
}

static void watch(Client *c, int how, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, how, c->fd, &e);
}

static void stop_stream(Client *c) {
    if (!c->chunks) return;
    c->chunks = 0;
    c->before->after = c->after;
    c->after->before = c->before;
}

static void drop(Client *c) {
    stop_stream(c);
    close(c->fd);
    free(c->in);
    free(c);
}

/* Send now, keep what the socket does not take. False: the connection is gone. */
static bool put(Client *c, const char *bytes, size_t length) {
    ssize_t sent = c->out_len ? 0 : send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent < 0) sent = 0;
    if ((size_t)sent == length) return true;
    if (c->out_len + length - (size_t)sent > OUT_BYTES) return false;
    memcpy(c->out + c->out_len, bytes + sent, length - (size_t)sent);
    c->out_len += length - (size_t)sent;
    watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    return true;
}

static bool answer_json(Client *c, const char mark[MARK_DIGITS]) {
    static const char filler[] =
        "The gateway hands this text on unchanged, byte by byte, and whoever asked can see that it is whole. "
        "It is about as long as a short answer of a chat model, and its length differs from one to the next.";
    char body[1024], all[1536];
    int shorter = (mark[MARK_DIGITS - 1] - '0') + 10 * ((mark[MARK_DIGITS - 2] - '0') & 3);
    int n = snprintf(body, sizeof body,
        "{\"id\":\"chatcmpl-8f2e4c6a0b1d4e5f9a7b3c%.*s\",\"object\":\"chat.completion\",\"created\":1760000000,"
        "\"model\":\"%s\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"#%.*s %.*s\","
        "\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"tool_calls\":[],"
        "\"reasoning\":null},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null,\"token_ids\":null}],"
        "\"service_tier\":null,\"system_fingerprint\":null,\"usage\":{\"prompt_tokens\":213,\"total_tokens\":301,"
        "\"completion_tokens\":88,\"prompt_tokens_details\":null},\"prompt_logprobs\":null,"
        "\"prompt_token_ids\":null,\"kv_transfer_params\":null}",
        MARK_DIGITS, mark, model, MARK_DIGITS, mark, (int)sizeof filler - 1 - shorter, filler);
    int head = snprintf(all, sizeof all, json_head, (size_t)n);
    memcpy(all + head, body, (size_t)n);
    return put(c, all, (size_t)(head + n));
}

/* A copy of a template, as it is for this stream now. */
static size_t fill(const Client *c, const Template *t, char *to) {
    memcpy(to, t->text, t->length);
    memcpy(to + t->id, c->mark, MARK_DIGITS);
    if (t->mark) {
        memcpy(to + t->mark, c->mark, MARK_DIGITS);
        digits(to + t->mark + MARK_DIGITS + 1, INDEX_DIGITS, (unsigned)c->next);
    }
    if (t->tokens && c->first_us) {
        char count[16]; /* one chunk is the role's */
        snprintf(count, sizeof count, "%*d", (int)sizeof TOKENS - 1, c->chunks - 1);
        memcpy(to + t->tokens, count, sizeof TOKENS - 1);
    }
    return t->length;
}

static bool serve(Client *c);

/* One more chunk of a running stream, and the end if it was the last. */
static bool step(Client *c, long now) {
    if (c->out_len) return true; /* a slow reader: it gets the next one when it has taken this one */
    char bytes[sizeof usage.text + 32];
    /* The first chunk says who speaks, the last one why it ends. */
    size_t length = fill(c, c->next == 0 ? &role : c->next == c->chunks - 1 ? &last : &middle, bytes);
    if (!put(c, bytes, length)) return false;
    if (++c->next < c->chunks) {
        if (c->first_us) c->due_us = c->began_us + c->first_us + (c->next - 1) * c->gap_us;
        else if (c->tick_us) c->due_us = (now / c->tick_us + 1) * c->tick_us;
        return true;
    }
    length = c->usage ? fill(c, &usage, bytes) : 0;
    length += (size_t)sprintf(bytes + length, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    stop_stream(c);
    return put(c, bytes, length) && serve(c);
}

static bool start_stream(Client *c, const char mark[MARK_DIGITS], int chunks, long tick_us, long first_us,
                         long gap_us, bool usage) {
    memcpy(c->mark, mark, MARK_DIGITS);
    c->chunks = chunks, c->next = 0, c->tick_us = tick_us, c->due_us = 0, c->usage = usage;
    c->before = running.before, c->after = &running;
    c->before->after = running.before = c;
    c->began_us = now_us(), c->first_us = first_us, c->gap_us = gap_us;
    if (!put(c, sse_head, sse_head_len)) return false;
    if (!first_us) return step(c, c->began_us);
    c->due_us = c->began_us + first_us;
    return true;
}

static bool says(const char *body, size_t length, const char *name) {
    const char *at = memmem(body, length, name, strlen(name));
    if (!at) return false;
    at += strlen(name);
    return strncmp(at, "true", 4) == 0 || strncmp(at, " true", 5) == 0;
}

static bool answer(Client *c, const char *head, const char *body, size_t length) {
    if (strncmp(head, "POST ", 5) != 0) {
        char body[256] = "", all[768];
        if (strncmp(head, "GET /v1/models", 14) == 0)
            snprintf(body, sizeof body, "{\"object\":\"list\",\"data\":[{\"id\":\"%.99s\",\"object\":\"model\"}]}",
                     model);
        int n = snprintf(all, sizeof all, json_head, strlen(body));
        n += snprintf(all + n, sizeof all - (size_t)n, "%s", body);
        return put(c, all, (size_t)n);
    }
    char mark[MARK_DIGITS + 1] = "0000000000";
    int chunks = default_chunks;
    long tick_us = 0, first_us = 0, gap_us = 0;
    const char *order = memmem(body, length, "[#", 2);
    if (order) sscanf(order, "[#%10[0-9] chunks=%d tick=%ld first=%ld gap=%ld", mark, &chunks, &tick_us, &first_us,
                      &gap_us);
    if (!says(body, length, "\"stream\":")) return answer_json(c, mark);
    if (chunks < 2) chunks = 2;
    return start_stream(c, mark, chunks, tick_us, first_us, gap_us, says(body, length, "\"include_usage\":"));
}

/* Answer what has come, one request after the other. False: close. */
static bool serve(Client *c) {
    while (!c->chunks && c->in_len) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return c->in_len < IN_BYTES;
        *end = 0; /* the head is text now; every byte of it was looked at before */
        char *length_at = header(c->in, "content-length"), *body = end + 4;
        size_t length = length_at ? strtoul(length_at, NULL, 10) : 0, head = (size_t)(body - c->in);
        *end = '\r';
        if (head + length > IN_BYTES) return false;
        if (head + length > c->in_len) return true;
        *end = 0;
        char *connection = header(c->in, "connection");
        c->close_after = connection && strncasecmp(connection, " close", 6) == 0;
        char after = body[length];
        body[length] = 0; /* there is room for one more byte than we read */
        bool good = answer(c, c->in, body, length);
        body[length] = after;
        if (!good) return false;
        memmove(c->in, body + length, c->in_len -= head + length);
    }
    return c->chunks || c->out_len || !c->close_after;
}

static bool readable(Client *c) {
    ssize_t got = recv(c->fd, c->in + c->in_len, IN_BYTES - c->in_len, 0);
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    c->in_len += (size_t)got;
    return serve(c);
}

static bool writable(Client *c) {
    ssize_t sent = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    memmove(c->out, c->out + sent, c->out_len -= (size_t)sent);
    if (!c->out_len) watch(c, EPOLL_CTL_MOD, EPOLLIN);
    return c->out_len || c->chunks || !c->close_after;
}

static void accept_one(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Client *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->in = malloc(IN_BYTES + 1);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

/* A chunk to each stream whose time has come; the µs until the next one, or -1. */
static long tick(void) {
    long soonest = -1, now = now_us();
    for (Client *c = running.after, *after; c != &running; c = after) {
        after = c->after;
        if (c->due_us <= now && !step(c, now)) {
            drop(c);
            continue;
        }
        if (!c->chunks || c->out_len) continue;
        long wait = c->due_us > now ? c->due_us - now : 0;
        if (soonest < 0 || wait < soonest) soonest = wait;
    }
    return soonest;
}

static int bound(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in a = {AF_INET, htons((uint16_t)port), {htonl(INADDR_LOOPBACK)}, {0}};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4096)) perror("engine: bind"), exit(1);
    return fd;
}

int main(int argc, char **argv) {
    struct option options[] = {{"listen", 1, 0, 'l'}, {"port", 1, 0, 'p'}, {"model", 1, 0, 'm'},
                               {"chunks", 1, 0, 'c'}, {0}};
    Client listeners[LISTENERS] = {0};
    int count = 0, option;
    raise_file_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'm') model = optarg;
        else if (option == 'c') default_chunks = atoi(optarg);
        else if ((option == 'l' || option == 'p') && count < LISTENERS) {
            Client *l = &listeners[count++];
            *l = (Client){.fd = option == 'l' ? atoi(optarg) : bound(atoi(optarg)), .listener = true};
            watch(l, EPOLL_CTL_ADD, EPOLLIN);
        } else return 2;
    }
    if (!count) return fprintf(stderr, "engine: give it --listen FD or --port PORT\n"), 2;
    write_templates();
    puts("ready");
    fflush(stdout);
    for (time_t written = 0;;) {
        struct epoll_event events[EVENTS];
        long wait_us = tick();
        struct timespec wait = {wait_us / 1000000, wait_us % 1000000 * 1000};
        int n = epoll_pwait2(epoll_fd, events, EVENTS, wait_us < 0 ? NULL : &wait, NULL);
        if (time(NULL) != written) written = time(NULL), write_heads();
        for (int i = 0; i < n; i++) {
            Client *c = events[i].data.ptr;
            if (c->listener) accept_one(c->fd);
            else if ((events[i].events & EPOLLOUT && !writable(c)) ||
                     (events[i].events & ~(unsigned)EPOLLOUT && !readable(c))) drop(c);
        }
    }
}
