/* The limit of datagrams: one blocking socket, one thread. `udp_echo recvfrom|recvmmsg echo|ingest`
 *
 * recvfrom   a call to receive and a call to send for each datagram: what a server can do that takes them one by one
 * recvmmsg   as many as are there, up to BATCH, with one call, and the same back
 *
 * `ingest` only counts what comes. Prints its port when it serves, and on SIGTERM its processor seconds, its memory
 * and how many datagrams it handled, as one line of JSON.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>

#include "program.h"

enum { BATCH = 64, LARGEST = 65536, BUFFER = 4 << 20 };

static volatile sig_atomic_t ended;
static unsigned long long handled;
static int answers;

static void on_end(int number) { ended = number; }

static void one_by_one(int fd) {
    static char data[LARGEST];
    while (!ended) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t size = recvfrom(fd, data, sizeof data, 0, (void *)&from, &length);
        if (size < 0)
            continue; /* a second without any, a signal, or news of a client that is gone */
        handled++;
        if (answers)
            sendto(fd, data, (size_t)size, 0, (void *)&from, length);
    }
}

static void in_batches(int fd) {
    static char data[BATCH][LARGEST];
    static struct sockaddr_in from[BATCH];
    static struct iovec parts[BATCH];
    static struct mmsghdr messages[BATCH];
    for (int i = 0; i < BATCH; i++)
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &from[i], .msg_namelen = sizeof from[i], .msg_iov = &parts[i], .msg_iovlen = 1};
    while (!ended) {
        for (int i = 0; i < BATCH; i++)
            parts[i] = (struct iovec){data[i], sizeof data[i]};
        int count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (count < 0)
            continue;
        handled += (unsigned)count;
        for (int i = 0; i < count; i++)
            parts[i].iov_len = messages[i].msg_len;
        if (answers)
            sendmmsg(fd, messages, (unsigned)count, 0);
    }
}

int main(int count, char **arguments) {
    if (count < 3) {
        fprintf(stderr, "udp_echo recvfrom|recvmmsg echo|ingest\n");
        return 2;
    }
    answers = strcmp(arguments[2], "ingest") != 0;
    struct sigaction action = {.sa_handler = on_end}; /* without SA_RESTART, so that the wait ends */
    struct timeval second = {.tv_sec = 1};            /* bounded: a signal may come just before it */
    int buffer = BUFFER, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer) < 0)
        die("socket");
    sigaction(SIGTERM, &action, NULL);
    bind_to_any_port(fd);
    say_port(fd);
    strcmp(arguments[1], "recvmmsg") ? one_by_one(fd) : in_batches(fd);
    say_what_it_took(handled);
    return 0;
}
