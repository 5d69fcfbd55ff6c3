/* Stands for newuidmap, sudo, a container runtime's helper: set-uid root; runs its arguments as another user. */
#include <unistd.h>

int main(int count, char **words)
{
    return count < 2 || setgid(65534) || setuid(65533) || execv(words[1], words + 1);
}
