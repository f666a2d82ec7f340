/* Many WebSocket subscribers in one thread: the load of benchmarks/fanout.py.
 *
 *     load PORT CONNECTIONS FIRST PATH SUBSCRIBE [tls]
 *
 * Connects, shakes hands, sends each connection the text SUBSCRIBE, in which %d is its number, and, if FIRST is 1,
 * waits until it has its first message. From then on it answers commands, a line each, with a line of JSON each:
 *
 *     reset                 forget what was counted
 *     wait COUNT MS         answer when so many stamped messages came, or after so long
 *     report                what was counted since the reset
 *     stall COUNT, resume   the last COUNT connections stop reading; go on
 *     quit
 *
 * A message is stamped if its text has "@SEQUENCE:NANOSECONDS@", the time on CLOCK_MONOTONIC. Latency is the time from
 * there to the read() that brought the message. A sequence is delivered when every connection that reads has it.
 *
 *     load ceiling          how many frames a second this program can take: no other may come near
 *
 * With "tls", each connection makes a full TLS handshake, and trusts whatever certificate it is shown. Built with -DPLAIN,
 * it needs no OpenSSL and knows no TLS.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifndef PLAIN
#include <openssl/ssl.h>
#endif

enum { CONNECTING, SECURING, SHAKING, OPEN, CLOSED };
enum { IN_FLIGHT = 900, BUFFER = 1 << 18, CARRY = 1 << 14, SEQUENCES = 1 << 18, STEPS = 64, BUCKETS = STEPS * 40 };

struct connection {
    int fd, state, closed_by;
    uint64_t skip;     /* bytes of a large frame that are still to come */
    uint32_t carried;  /* bytes of a small frame that came already */
    char *carry;
    int has_first, stalled;
    void *tls;  /* an SSL, or NULL */
};

struct sequence { int64_t stamp, last; uint32_t count; };

static struct connection *connections;
static struct sequence sequences[SEQUENCES];
static uint64_t buckets[BUCKETS], stamped, frames, bytes, closes[5000];
static int64_t last_at, began, ready_at, wait_until, slowest;
static uint64_t wait_for;
static int total, started, ready, reading, first_wanted, port, epoll;
static const char *path, *subscribe;
static char buffer[CARRY + BUFFER];

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) { perror(what); exit(1); }

static void heed(uint32_t number, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u32 = number};
    epoll_ctl(epoll, EPOLL_CTL_MOD, connections[number].fd, &event);
}

#ifdef PLAIN
static void use_tls(void) { fprintf(stderr, "load was built without OpenSSL: install its headers\n"); exit(1); }
static int secure(struct connection *c, uint32_t number) { (void)c; (void)number; return 1; }
static ssize_t get(struct connection *c, char *to, size_t size) { return read(c->fd, to, size); }
static ssize_t put(struct connection *c, const char *from, size_t size) { return write(c->fd, from, size); }
static int has_more(struct connection *c) { (void)c; return 0; }
#else
static SSL_CTX *tls;

static void use_tls(void) {
    if (!(tls = SSL_CTX_new(TLS_client_method()))) die("OpenSSL");
    SSL_CTX_set_read_ahead(tls, 1);
    SSL_CTX_set_default_read_buffer_len(tls, 1 << 16);
}

/* Goes on with the TLS handshake; tells whether it is done, or there is none. */
static int secure(struct connection *c, uint32_t number) {
    if (!tls) return 1;
    if (!c->tls && (!(c->tls = SSL_new(tls)) || !SSL_set_fd(c->tls, c->fd))) die("SSL_new");
    int done = SSL_connect(c->tls), error = SSL_get_error(c->tls, done);
    if (done == 1) return 1;
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) { fprintf(stderr, "no TLS handshake\n"); exit(1); }
    heed(number, error == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
    c->state = SECURING;
    return 0;
}

static ssize_t get(struct connection *c, char *to, size_t size) {
    if (!c->tls) return read(c->fd, to, size);
    int got = SSL_read(c->tls, to, size);
    if (got > 0) return got;
    if (SSL_get_error(c->tls, got) != SSL_ERROR_WANT_READ) return 0;
    errno = EAGAIN;
    return -1;
}

static ssize_t put(struct connection *c, const char *from, size_t size) {
    if (!c->tls) return write(c->fd, from, size);
    int wrote = SSL_write(c->tls, from, size);
    if (wrote > 0) return wrote;
    errno = EPIPE;
    return -1;
}

/* Whether OpenSSL has read what epoll therefore does not tell of. */
static int has_more(struct connection *c) { return c->tls && SSL_has_pending(c->tls); }
#endif

static int bucket_of(int64_t ns) {
    uint64_t us = ns > 0 ? ns / 1000 : 0;
    if (us < STEPS) return us;
    int power = 63 - __builtin_clzll(us / STEPS) + 1;
    int place = power * (STEPS / 2) + (us >> power);
    return place < BUCKETS ? place : BUCKETS - 1;
}

static double bucket_ms(int place) {
    if (place < STEPS) return place / 1000.0;
    int power = (place - STEPS / 2) / (STEPS / 2);
    uint64_t us = (uint64_t)(place - power * (STEPS / 2)) << power;
    return us / 1000.0;
}

static double percentile(double share) {
    uint64_t wanted = stamped * share, seen = 0;
    for (int i = 0; i < BUCKETS; i++) if ((seen += buckets[i]) > wanted) return bucket_ms(i);
    return slowest / 1e6;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void count_stamp(const char *text, size_t size, int64_t at) {
    const char *end = text + size, *mark = memchr(text, '@', size);
    if (!mark) return;
    uint64_t sequence = 0;
    int64_t stamp = 0;
    for (mark++; mark < end && *mark >= '0' && *mark <= '9'; mark++) sequence = sequence * 10 + *mark - '0';
    if (mark >= end || *mark != ':') return;
    for (mark++; mark < end && *mark >= '0' && *mark <= '9'; mark++) stamp = stamp * 10 + *mark - '0';
    if (mark >= end || *mark != '@') return;
    struct sequence *found = &sequences[sequence % SEQUENCES];
    if (found->stamp != stamp) *found = (struct sequence){stamp, at, 0};
    found->count++;
    found->last = last_at = at;
    if (at - stamp > slowest) slowest = at - stamp;
    buckets[bucket_of(at - stamp)]++;
    stamped++;
}

static void send_frame(struct connection *c, int opcode, const char *text, size_t size) {
    char frame[256];
    frame[0] = 0x80 | opcode;
    frame[1] = 0x80 | (size < 126 ? size : 126);
    int head = 2;
    if (size >= 126) { frame[2] = size >> 8; frame[3] = size & 255; head = 4; }
    memset(frame + head, 0, 4);  /* a mask of zeros masks nothing */
    memcpy(frame + head + 4, text, size);
    if (put(c, frame, head + 4 + size) < 0 && errno != EPIPE && errno != ECONNRESET) die("write");
}

static void be_ready(struct connection *c) {
    if (c->has_first) return;
    c->has_first = 1;
    if (++ready == total) ready_at = now();
}

static void close_connection(struct connection *c, int code) {
    if (c->state == CLOSED) return;
    closes[code > 0 && code < 5000 ? code : 1006]++;
    c->state = CLOSED;
    close(c->fd);
    if (!c->stalled) reading--;
}

static void take_frame(struct connection *c, int opcode, const char *text, size_t size, int64_t at) {
    if (opcode == 8) {
        close_connection(c, size >= 2 ? (unsigned char)text[0] << 8 | (unsigned char)text[1] : 1005);
    } else if (opcode == 9) {
        send_frame(c, 10, text, size < 125 ? size : 125);
    } else if (opcode <= 2) {
        frames++;
        be_ready(c);
        if (text) count_stamp(text, size, at);
    }
}

/* Takes whole frames off the buffer; keeps the beginning of another for the next time. */
static void take(struct connection *c, char *data, size_t size, int64_t at) {
    while (size && c->state == OPEN) {
        if (c->skip) {
            size_t part = size < c->skip ? size : c->skip;
            data += part; size -= part;
            if (!(c->skip -= part)) take_frame(c, 1, NULL, 0, at);
            continue;
        }
        unsigned char *head = (unsigned char *)data;
        size_t length = size > 1 ? head[1] & 127 : 0, start = 2;
        if (length == 126) { start = 4; if (size >= 4) length = head[2] << 8 | head[3]; }
        else if (length == 127) {
            start = 10;
            if (size >= 10) { length = 0; for (int i = 2; i < 10; i++) length = length << 8 | head[i]; }
        }
        if (size >= start && size >= start + length) {
            take_frame(c, head[0] & 15, data + start, length, at);
            data += start + length; size -= start + length;
        } else if (size >= start && start + length > CARRY) {
            c->skip = start + length - size;
            size = 0;
        } else {
            if (!c->carry && !(c->carry = malloc(CARRY))) die("malloc");
            memcpy(c->carry, data, size);
            c->carried = size;
            size = 0;
        }
    }
}

static void begin(void) {
    struct connection *c = &connections[started];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0) die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) die("connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = started};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    started++; reading++;
}

static void shake_hands(struct connection *c, uint32_t number) {
    char request[512];
    int size = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", path);
    if (put(c, request, size) != size) die("handshake");
    heed(number, EPOLLIN);
    c->state = SHAKING;
}

static void opened(struct connection *c, int number, char *data, size_t size) {
    char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end || strncmp(data, "HTTP/1.1 101", 12)) { fprintf(stderr, "refused: %.60s\n", data); exit(1); }
    c->state = OPEN;
    if (*subscribe) {
        char text[200];
        size_t length = snprintf(text, sizeof text, subscribe, number);
        send_frame(c, 1, text, length);
    }
    if (!first_wanted) be_ready(c);
    size_t used = end + 4 - data;
    take(c, data + used, size - used, now());
}

static void readable(uint32_t number) {
    struct connection *c = &connections[number];
    size_t carried = c->carried;
    c->carried = 0;
    if (carried) memcpy(buffer, c->carry, carried);
    ssize_t size = get(c, buffer + carried, BUFFER);
    if (size <= 0) {
        c->carried = carried;
        if (size == 0 || errno != EAGAIN) close_connection(c, 1006);
        return;
    }
    bytes += size;
    if (c->state == SHAKING) opened(c, number, buffer, size);
    else take(c, buffer, carried + size, now());
    if (c->state == OPEN && has_more(c)) readable(number);
}

static void stall(int count) {
    for (int i = total - count; i < total; i++) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, connections[i].fd, NULL);
        connections[i].stalled = 1;
        reading--;
    }
}

static void go_on(void) {
    for (int i = 0; i < total; i++) {
        if (!connections[i].stalled || connections[i].state == CLOSED) continue;
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(epoll, EPOLL_CTL_ADD, connections[i].fd, &event);
        connections[i].stalled = 0;
        reading++;
    }
}

static void report(void) {
    static int64_t lasts[SEQUENCES];
    int whole = 0, some = 0;
    for (int i = 0; i < SEQUENCES; i++) {
        if (!sequences[i].count) continue;
        some++;
        if (sequences[i].count >= (uint32_t)reading) lasts[whole++] = sequences[i].last - sequences[i].stamp;
    }
    qsort(lasts, whole, sizeof *lasts, by_value);
    printf("{\"deliveries\":%lu,\"frames\":%lu,\"bytes\":%lu,\"reading\":%d,\"sequences\":%d,\"whole\":%d,"
           "\"last_at\":%ld,\"began\":%ld,\"ready_at\":%ld,\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"max\":%.3f,"
           "\"last_p50\":%.3f,\"last_p99\":%.3f,\"closes\":{",
           stamped, frames, bytes, reading, some, whole, last_at, began, ready_at, percentile(.5), percentile(.9),
           percentile(.99), slowest / 1e6, whole ? lasts[whole / 2] / 1e6 : 0., whole ? lasts[whole * 99 / 100] / 1e6 : 0.);
    for (int i = 0, any = 0; i < 5000; i++) if (closes[i]) printf("%s\"%d\":%lu", any++ ? "," : "", i, closes[i]);
    printf("}}\n");
}

static void reset(void) {
    memset(sequences, 0, sizeof sequences);
    memset(buckets, 0, sizeof buckets);
    memset(closes, 0, sizeof closes);
    stamped = frames = bytes = 0;
    slowest = last_at = 0;
}

static void answer_wait(int64_t at) {
    if (!wait_until || (stamped < wait_for && at < wait_until)) return;
    printf("{\"reached\":%s,\"at\":%ld}\n", stamped >= wait_for ? "true" : "false", last_at);
    wait_until = 0;
}

static void command(char *line) {
    unsigned long count, ms;
    int some;
    if (!strcmp(line, "quit")) exit(0);
    else if (sscanf(line, "wait %lu %lu", &count, &ms) == 2) { wait_for = count; wait_until = now() + ms * 1000000; return; }
    else if (!strcmp(line, "report")) { report(); return; }
    else if (!strcmp(line, "reset")) reset();
    else if (sscanf(line, "stall %d", &some) == 1) stall(some);
    else if (!strcmp(line, "resume")) go_on();
    printf("{}\n");
}

static void commands(void) {
    static char line[4096];
    static size_t filled;
    ssize_t size = read(0, line + filled, sizeof line - 1 - filled);
    if (size <= 0) exit(0);
    filled += size;
    line[filled] = 0;
    for (char *end; (end = strchr(line, '\n'));) {
        *end = 0;
        command(line);
        filled -= end + 1 - line;
        memmove(line, end + 1, filled + 1);
    }
}

static void run(void) {
    struct epoll_event events[512];
    int announced = 0;
    for (;;) {
        while (started < total && started - ready < IN_FLIGHT) begin();
        int64_t at = now();
        int found = epoll_wait(epoll, events, 512, wait_until ? (wait_until - at) / 1000000 + 1 : -1);
        for (int i = 0; i < found; i++) {
            uint32_t number = events[i].data.u32;
            if (number == UINT32_MAX) commands();
            else if (connections[number].state <= SECURING) {
                if (secure(&connections[number], number)) shake_hands(&connections[number], number);
            }
            else if (connections[number].state != CLOSED && !connections[number].stalled) readable(number);
        }
        if (ready == total && !announced) {
            announced = 1;
            printf("{\"ready\":%d,\"seconds\":%.4f}\n", ready, (ready_at - began) / 1e9);
        }
        answer_wait(now());
    }
}

/* One process writes joined frames as fast as they are read; this one takes them, as it would a server's. */
static void ceiling(void) {
    const char *text = "{\"type\":\"task.updated\",\"data\":{\"id\":\"task-1\",\"changes\":{\"title\":\"@1:1@ some words of a title\"}}}";
    static char joined[1 << 16];
    size_t one = strlen(text) + 2, size = 0;
    for (; size + one <= sizeof joined; size += one) {
        joined[size] = (char)0x81; joined[size + 1] = strlen(text);
        memcpy(joined + size + 2, text, one - 2);
    }
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) die("socketpair");
    pid_t child = fork();
    if (!child) {
        close(pair[1]);
        for (;;) if (write(pair[0], joined, size) < 0) _exit(0);
    }
    close(pair[0]);
    struct connection one_connection = {.fd = pair[1], .state = OPEN};
    connections = &one_connection; total = 1; reading = 1;
    for (began = now(); now() - began < 1000000000LL;) readable(0);
    printf("{\"frames\":%lu}\n", frames);
    close(pair[1]);
    waitpid(child, NULL, 0);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2 && !strcmp(argv[1], "ceiling")) { ceiling(); return 0; }
    if (argc < 6) { fprintf(stderr, "usage: load PORT CONNECTIONS FIRST PATH SUBSCRIBE [tls]\n"); return 2; }
    if (argc > 6) use_tls();
    port = atoi(argv[1]); total = atoi(argv[2]); first_wanted = atoi(argv[3]); path = argv[4]; subscribe = argv[5];
    connections = calloc(total, sizeof *connections);
    epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    if (!connections || epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event)) die("start");
    began = now();
    run();
}
